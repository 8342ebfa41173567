"""Life after pruning: what diffusers, PEFT and torch do with a stock model they do with a pruned one."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

import diffprune
from diffprune.architectures.example_inputs import derived_inputs as inputs
from tests.zoo.zoo import largest_difference, outputs_of, random_inputs, tiny_model

NAMES = ["UNet2DModel", "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"]
WITH_ADAPTERS = NAMES[1:]
"""diffusers gives UNet2DModel no methods for adapters; PEFT itself serves it."""

LORA: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    "init_lora_weights": False,
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _small_inputs_and_nothing_global(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, size in {"SIDE": 8, "FRAMES": 3, "TEXT_TOKENS": 7}.items():
        monkeypatch.setattr(inputs, name, size)
    active = attention_dispatch._AttentionBackendRegistry._active_backend
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    attention_dispatch._AttentionBackendRegistry.set_active_backend(active)


@cache
def _pruned(name: str) -> Any:
    model = tiny_model(name)
    small = diffprune.prune(model, diffprune.plan(model, criterion="random", ratio=0.4))
    assert small.num_parameters() < 0.8 * model.num_parameters()
    return small


def pruned(name: str) -> Any:
    """A pruned model that a test may change."""
    return copy.deepcopy(_pruned(name))


def loaded(name: str, folder: Path, **options: Any) -> Any:
    return getattr(diffprune, name).from_pretrained(folder, **options)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(**random_inputs(model), return_dict=False)[0].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    model = pruned(name).train()
    plain = gradients(model)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys()
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "FluxTransformer2DModel"])
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_backends_compute_the_same(name: str, backend: str) -> None:
    model = pruned(name)
    model.set_attention_backend(backend)
    assert largest_difference(outputs_of(model), outputs_of(_pruned(name))) < 1e-5


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel"])
def test_attention_processors_compute_the_same(name: str) -> None:
    model = pruned(name)
    attentions = [m for m in model.modules() if type(m).__name__ == "Attention"]
    assert attentions
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        for attention in attentions:
            attention.set_processor(processor)
        assert largest_difference(outputs_of(model), outputs_of(_pruned(name))) < 1e-5


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "FluxTransformer2DModel"])
def test_q_k_and_v_are_fused_and_unfused(name: str) -> None:
    model = pruned(name)
    model.fuse_qkv_projections()
    assert largest_difference(outputs_of(model), outputs_of(_pruned(name))) < 1e-5
    model.unfuse_qkv_projections()
    assert largest_difference(outputs_of(model), outputs_of(_pruned(name))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_model_compiles_as_one_graph(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(pruned(name), fullgraph=True, backend="eager")
    with torch.no_grad():
        output = compiled(**random_inputs(_pruned(name)), return_dict=False)[0]
    assert largest_difference([output], outputs_of(_pruned(name))[:1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_inductor_compiles_it(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(pruned(name), fullgraph=True)
    with torch.no_grad():
        output = compiled(**random_inputs(_pruned(name)), return_dict=False)[0]
    assert largest_difference([output], outputs_of(_pruned(name))[:1]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_computes_and_is_kept(name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    model = pruned(name).to(dtype)
    told = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in random_inputs(model).items()
    }
    with torch.no_grad():
        (output,) = model(**told, return_dict=False)
    assert output.dtype == dtype
    reference = outputs_of(_pruned(name))[0]
    assert (output.float() - reference).abs().max() < tolerance * reference.abs().max()
    model.save_pretrained(tmp_path)
    again = loaded(name, tmp_path, dtype=dtype)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_shards_load_as_they_were(name: str, tmp_path: Path) -> None:
    _pruned(name).save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert largest_difference(outputs_of(loaded(name, tmp_path)), outputs_of(_pruned(name))) == 0


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_a_lora_is_added_saved_loaded_and_fused(name: str, tmp_path: Path) -> None:
    model = pruned(name)
    model.add_adapter(peft.LoraConfig(**LORA), adapter_name="style")
    styled = outputs_of(model)
    assert largest_difference(styled, outputs_of(_pruned(name))) > 1e-3
    model.save_lora_adapter(tmp_path / "lora", adapter_name="style")
    again = pruned(name)
    again.load_lora_adapter(tmp_path / "lora", prefix=None, adapter_name="style", use_safetensors=True)
    assert largest_difference(outputs_of(again), styled) == 0
    again.fuse_lora()
    again.unload_lora()
    assert largest_difference(outputs_of(again), styled) < 1e-5
    again.save_pretrained(tmp_path / "fused")
    fused = loaded(name, tmp_path / "fused")
    assert largest_difference(outputs_of(fused), outputs_of(again)) == 0
    assert fused.pruning == _pruned(name).pruning


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_a_lora_is_trained_alone(name: str) -> None:
    model = pruned(name).requires_grad_(False)
    model.add_adapter(peft.LoraConfig(**LORA))
    found = gradients(model)
    assert found
    assert all("lora_" in parameter for parameter in found)


def test_peft_serves_the_unet_that_diffusers_gives_no_adapters(tmp_path: Path) -> None:
    model = peft.get_peft_model(pruned("UNet2DModel"), peft.LoraConfig(**LORA))
    sample = random_inputs(_pruned("UNet2DModel"))
    with torch.no_grad():
        styled = model(**sample, return_dict=False)[0]
    model.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(pruned("UNet2DModel"), tmp_path / "lora").eval().merge_and_unload()
    assert type(again) is diffprune.UNet2DModel
    assert largest_difference(outputs_of(again), [styled]) < 1e-5
    again.save_pretrained(tmp_path / "fused")
    assert largest_difference(outputs_of(loaded("UNet2DModel", tmp_path / "fused")), outputs_of(again)) == 0


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "FluxTransformer2DModel"])
def test_layers_that_the_config_does_not_describe_are_not_saved(name: str, tmp_path: Path) -> None:
    adapted, fused = pruned(name), pruned(name)
    adapted.add_adapter(peft.LoraConfig(**LORA))
    fused.fuse_qkv_projections()
    for model in (adapted, fused):
        with pytest.raises(diffprune.ModelError, match="unload_lora"):
            model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def pipeline() -> Any:
    made = DDPMPipeline(pruned("UNet2DModel"), DDPMScheduler(num_train_timesteps=20))
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: Any) -> Tensor:
    images = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    return torch.from_numpy(images)


def test_an_offloaded_pipeline_draws_the_same_and_is_saved_once_its_hooks_are_gone(tmp_path: Path) -> None:
    """Without an accelerator diffusers wants a device named; the hooks are those that a GPU gets."""
    pipe = pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    assert any(hasattr(module, "_hf_hook") for module in pipe.unet.modules())
    assert torch.equal(drawn(pipe), drawn(pipeline()))
    pipe.remove_all_hooks()
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(drawn(again), drawn(pipeline()))


def test_diffusers_offloads_to_the_cpu_only_from_an_accelerator() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(RuntimeError, match="requires accelerator"):
        pipeline().enable_model_cpu_offload()


def test_a_compiled_pipeline_is_saved_without_its_wrapper(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.save_pretrained(tmp_path)
    again = diffprune.load_pipeline(tmp_path)
    assert type(again.unet) is diffprune.UNet2DModel
    assert largest_difference(outputs_of(again.unet), outputs_of(_pruned("UNet2DModel"))) == 0
