"""Models that cannot be pruned as they are: each is refused before any work, with the remedy."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DModel
from torch import nn

import diffprune
from diffprune.artifact.preconditions import check_sound
from diffprune.cli.main import main
from tests.conftest import tiny_pipeline, tiny_unet


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=8, in_channels=4,
        joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def with_config_of_quantized() -> Any:
    config = {**flux().config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    return FluxTransformer2DModel.from_config(config)


def with_weights_of_8_bits() -> Any:
    model = flux()
    layer = model.transformer_blocks[0].ff.net[2]
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    return model


def with_layers_of_a_quantizer() -> Any:
    """A layer as bitsandbytes has it: a subclass of nn.Linear from its package."""
    model = flux()
    kind = type("Linear8bitLt", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    model.transformer_blocks[1].ff.net[2].__class__ = kind
    return model


def compiled_in_place() -> Any:
    model = flux()
    model.compile(backend="eager")
    return model


def compiled_block_by_block() -> Any:
    model = flux()
    model.compile_repeated_blocks(backend="eager")
    return model


def with_an_adapter() -> Any:
    model = flux()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"]))
    return model


def with_fused_projections() -> Any:
    model = flux()
    model.fuse_qkv_projections()
    return model


def with_shared_blocks() -> Any:
    model = flux()
    model.transformer_blocks[1] = model.transformer_blocks[0]
    return model


def with_tied_weights() -> Any:
    model = flux()
    model.transformer_blocks[1].ff.net[2].weight = model.transformer_blocks[0].ff.net[2].weight
    return model


def cast_layer_by_layer() -> Any:
    model = flux()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return model


UNSOUND: dict[str, tuple[Callable[[], Any], str, str]] = {
    "quantized by its config": (with_config_of_quantized, "quantized: its config", "quantize the result"),
    "8-bit weights": (
        with_weights_of_8_bits,
        "quantized: transformer_blocks.0.ff.net.2.weight",
        "prune the model in fp32",
    ),
    "layers of a quantizer": (
        with_layers_of_a_quantizer,
        "quantized: transformer_blocks.1.ff.net.2",
        "prune the model",
    ),
    "compiled": (compiled_in_place, "compiled: the whole model", "compile the result"),
    "compiled by blocks": (compiled_block_by_block, "compiled: transformer_blocks.0 and 3 more", "compile the result"),
    "adapter": (with_an_adapter, "with adapters: transformer_blocks.0.attn.to_q", "fuse_lora() and then unload_lora()"),
    "fused": (with_fused_projections, "fused q, k and v: transformer_blocks.0.attn", "unfuse_qkv_projections()"),
    "shared blocks": (with_shared_blocks, "shared: transformer_blocks.0 and transformer_blocks.1", "copy.deepcopy"),
    "tied weights": (
        with_tied_weights,
        "shared: transformer_blocks.0.ff.net.2.weight and transformer_blocks.1.ff.net.2.weight",
        "copy.deepcopy",
    ),
    "hooks": (cast_layer_by_layer, "offloaded, or changed by hooks", "load it again"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_a_model_that_cannot_be_pruned_as_it_is_is_refused_by_plan_and_prune(case: str) -> None:
    make, what, remedy = UNSOUND[case]
    plan, model = diffprune.plan(flux(), criterion="magnitude"), make()
    for refused in (lambda: diffprune.plan(model, criterion="magnitude"), lambda: diffprune.prune(model, plan)):
        with pytest.raises(diffprune.ModelError) as caught:
            refused()
        assert str(caught.value).startswith("this FluxTransformer2DModel cannot be pruned as it is:\n")
        assert f"\n  {what}" in str(caught.value)
        assert remedy in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    model = with_fused_projections()
    model.transformer_blocks[1].ff = model.transformer_blocks[0].ff
    model.compile(backend="eager")
    with pytest.raises(diffprune.ModelError) as caught:
        diffprune.plan(model, criterion="magnitude")
    assert all(f"  {word}" in str(caught.value) for word in ("compiled: ", "fused q, k and v: ", "shared: "))


def test_what_the_messages_advise_makes_a_model_sound() -> None:
    fused, adapted, shared = with_fused_projections(), with_an_adapter(), with_shared_blocks()
    fused.unfuse_qkv_projections()
    adapted.fuse_lora()
    adapted.unload_lora()
    shared.transformer_blocks[1] = copy.deepcopy(shared.transformer_blocks[0])
    for model in (flux(), fused, adapted, shared):
        check_sound(model)
        assert diffprune.plan(model, criterion="magnitude").after.params < model.num_parameters()


def test_a_module_from_elsewhere_needs_no_config_of_diffusers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.config = object()
    check_sound(model)
    model[1].weight = model[0].weight
    with pytest.raises(diffprune.ModelError, match=r"shared: 0.weight and 1.weight"):
        check_sound(model)


def test_a_wrapped_denoiser_is_asked_for_bare() -> None:
    pipeline = tiny_pipeline()
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    for model in (pipeline, pipeline.unet):
        with pytest.raises(diffprune.ModelError, match=r"wrapped by torch.compile; pass .*_orig_mod"):
            diffprune.plan(model, criterion="magnitude")
    wrapped = peft.get_peft_model(tiny_unet(), peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(diffprune.ModelError, match="merge_and_unload"):
        diffprune.plan(wrapped, criterion="magnitude")
    injected = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"]), tiny_unet())
    with pytest.raises(diffprune.ModelError, match="with adapters"):
        diffprune.plan(injected, criterion="magnitude")


def test_an_offloaded_pipeline_is_asked_for_without_hooks() -> None:
    pipeline = tiny_pipeline()
    for offload in (pipeline.enable_model_cpu_offload, pipeline.enable_sequential_cpu_offload):
        offload(device="cpu")
        with pytest.raises(diffprune.ModelError, match="remove_all_hooks"):
            diffprune.plan(pipeline, criterion="magnitude")
    pipeline = tiny_pipeline()
    pipeline.enable_model_cpu_offload(device="cpu")
    pipeline.remove_all_hooks()
    assert diffprune.plan(pipeline, criterion="magnitude")


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "quanto"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_quantized_folder_is_refused_from_the_command_line(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    tiny_pipeline().save_pretrained(folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": method}}))
    for command, model in (("plan", folder), ("prune", folder), ("plan", config)):
        assert main([command, str(model), "--criterion", "magnitude", "--out", str(tmp_path / "out")]) == 1
        message = capsys.readouterr().err
        assert "quantize" in message
        assert "Traceback" not in message
        assert not (tmp_path / "out").exists()


# plans


def dit(**changes: Any) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        norm_num_groups=4, num_embeds_ada_norm=10, **changes,
    )  # fmt: skip


def test_a_plan_from_another_class_or_config_is_refused() -> None:
    plan = diffprune.plan(flux(), criterion="magnitude")
    for other in (dit(), UNet2DModel.from_config(tiny_unet().config)):
        with pytest.raises(diffprune.PlanError, match=r"another model: a FluxTransformer2DModel .* make a new plan"):
            diffprune.prune(other, plan)
    plan = diffprune.plan(dit(), criterion="magnitude")
    with pytest.raises(diffprune.PlanError, match="the plan is for another model"):
        diffprune.prune(dit(attention_bias=False), plan)


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": {"transformer_blocks.*": 1.0}}])
def test_a_ratio_that_would_leave_a_group_empty_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(diffprune.OptionError, match="ratio"):
        diffprune.plan(flux(), criterion="magnitude", **options)


def test_the_largest_ratio_leaves_every_group_a_unit() -> None:
    plan = diffprune.plan(flux(), criterion="magnitude", ratio=0.999)
    assert {len(units.kept) for units in plan.groups.values()} == {1}
    assert diffprune.prune(flux(), plan).num_parameters() == plan.after.params


def changed(plan: diffprune.Plan, name: str, kept: tuple[int, ...]) -> diffprune.Plan:
    units = plan.groups[name].model_copy(update={"kept": kept})
    return plan.model_copy(update={"groups": {**plan.groups, name: units}})


def test_a_plan_that_leaves_a_group_empty_is_refused() -> None:
    plan = diffprune.plan(flux(), criterion="magnitude")
    empty = changed(plan, next(iter(plan.groups)), ())
    with pytest.raises(diffprune.PlanError, match="at least one"):
        diffprune.prune(flux(), empty)


def test_a_plan_that_removes_a_block_that_must_stay_is_refused() -> None:
    model = dit()
    plan = diffprune.plan(model, criterion="random", kinds=["blocks"], ratio=0.5)
    assert 0 in plan.groups["transformer_blocks"].kept
    for kept in ((1, 2), (3,)):
        with pytest.raises(diffprune.PlanError, match=r"transformer_blocks: block 0 cannot be removed.*keep it"):
            diffprune.prune(model, changed(plan, "transformer_blocks", kept))
