"""The precision that denoisers compute in: settled by device, recorded, and gone when it is over."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from diffprune.compute import autocast
from diffprune.compute.autocast import autocast_forward, resolve_precision, short_attention_in_fp32
from diffprune.compute.placement import checkpointed
from diffprune.options import FinetuneOptions, PlanOptions, SampleOptions
from diffprune.stages.finetune_stage import finetune_stage
from diffprune.stages.plan_stage import plan_model, plan_stage
from diffprune.stages.sample_stage import sample_stage
from tests.conftest import tiny_unet

CPU = torch.device("cpu")
BF16 = SampleOptions(mixed_precision="bf16")


@pytest.fixture
def fast_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocast, "is_fast_in_bf16", lambda device: True)


def told() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 11])


def test_auto_is_bf16_where_the_device_is_fast_in_it(fast_in_bf16: None) -> None:
    assert resolve_precision(SampleOptions()).mixed_precision == "bf16"


def test_auto_is_fp32_elsewhere() -> None:
    assert resolve_precision(SampleOptions()).mixed_precision == "no"


def test_a_precision_that_was_asked_for_stays(fast_in_bf16: None) -> None:
    assert resolve_precision(PlanOptions(mixed_precision="no")).mixed_precision == "no"
    assert resolve_precision(FinetuneOptions(mixed_precision="fp16")).mixed_precision == "fp16"


def test_products_are_computed_in_bf16_and_the_output_is_fp32() -> None:
    unet, seen = tiny_unet(), []
    unet.conv_in.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    with torch.no_grad():
        exact = unet(*told()).sample
        with autocast_forward(BF16, unet, CPU):
            rounded = unet(*told()).sample
        again = unet(*told()).sample
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).square().mean() / exact.square().mean()) < 1e-3
    assert torch.equal(again, exact)


def test_gradients_of_weights_are_fp32() -> None:
    unet = tiny_unet()
    with autocast_forward(BF16, unet, CPU):
        unet(*told()).sample.square().mean().backward()
    assert {p.grad.dtype for p in unet.parameters() if p.grad is not None} == {torch.float32}


def test_an_error_leaves_the_denoiser_as_it_was() -> None:
    unet = tiny_unet()
    with pytest.raises(RuntimeError, match="in between"), autocast_forward(BF16, unet, CPU):
        raise RuntimeError("in between")
    assert "forward" not in vars(unet)


def test_scores_in_bf16_choose_nearly_the_same_units(pipeline: DDPMPipeline) -> None:
    options = PlanOptions(data="digits", num_calibration_images=8, threshold=0.0, device="cpu")
    exact, rounded = (
        plan_model(pipeline, options.model_copy(update={"mixed_precision": name})) for name in ("no", "bf16")
    )
    pairs = [({*exact.groups[name].kept}, {*rounded.groups[name].kept}) for name in exact.groups]
    assert rounded.details["losses"] != exact.details["losses"]
    assert sum(len(a & b) for a, b in pairs) >= 0.9 * sum(len(a) for a, _ in pairs)


def test_what_auto_became_is_recorded(pipeline_folder: Path, tmp_path: Path, fast_in_bf16: None) -> None:
    source, data = str(pipeline_folder), {"data": "digits", "device": "cpu"}
    plan_stage(source, PlanOptions(num_calibration_images=2, **data), tmp_path / "plan")
    sample_stage(source, SampleOptions(num=2, steps=2, device="cpu"), tmp_path / "images")
    finetune_stage(source, None, FinetuneOptions(steps=1, batch_size=2, tracker="none", **data), tmp_path / "recovered")
    options = [json.loads((tmp_path / stage / "run.json").read_text())["options"] for stage in
               ("plan", "images", "recovered")]  # fmt: skip
    assert [each["mixed_precision"] for each in options] == ["bf16"] * 3
    assert "mixed_precision" not in json.loads((tmp_path / "plan" / "plan.json").read_text())["options"]


def gradients_and_attention(
    unet: UNet2DModel, *, keeps_activations: bool
) -> tuple[list[torch.Tensor], set[torch.dtype]]:
    """Gradients in bf16, and the dtypes that attention was computed in."""
    seen = set()

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **kwargs or {})
            if func is scaled_dot_product_attention:
                seen.add(result.dtype)
            return result

    with Watching(), autocast_forward(BF16, unet, CPU), nullcontext() if keeps_activations else checkpointed(unet):
        unet(*told()).sample.square().mean().backward()
    found = [p.grad.clone() for p in unet.parameters() if p.grad is not None]
    unet.zero_grad()
    return found, seen


def test_attention_over_few_tokens_is_trained_in_fp32_and_gradient_checkpointing_computes_the_same() -> None:
    unet = tiny_unet()
    kept, dtypes = gradients_and_attention(unet, keeps_activations=True)
    anew, dtypes_anew = gradients_and_attention(unet, keeps_activations=False)
    assert dtypes == dtypes_anew == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(kept, anew, strict=True))


def test_attention_that_is_not_trained_or_is_over_many_tokens_is_computed_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet = tiny_unet()
    with torch.no_grad(), autocast_forward(BF16, unet, CPU), torch.autocast("cpu", torch.bfloat16):
        assert not isinstance(short_attention_in_fp32(), TorchFunctionMode)
    monkeypatch.setattr(autocast, "MAX_SHORT_TOKENS", 8 * 8 - 1)
    assert gradients_and_attention(unet, keeps_activations=True)[1] == {torch.bfloat16}
