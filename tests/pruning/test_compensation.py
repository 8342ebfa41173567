"""Compensation: exact where possible, never worse on the fitted images, and equal after an interruption."""

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

import diffprune
from diffprune.artifact.slicing import KeptIndices, channel_axis
from diffprune.calibration.calibration_set import Calibration, LabeledImages, NoisyBatch, generate_images
from diffprune.cli.main import main
from diffprune.groups import find_groups, kept_indices, remove_units
from diffprune.options import PlanOptions, PruneOptions
from diffprune.pipelines.diffusion import DiffusionProcess
from diffprune.pipelines.predict import predict
from diffprune.planning import Plan, prepare
from diffprune.pruning.compensation import Compensation, compensate
from diffprune.pruning.compensation.layer_cache import SolvedLayers
from diffprune.pruning.compensation.layer_fit import ROWS, LayerFit
from diffprune.pruning.compensation.layerwise import fit_layers
from diffprune.pruning.compensation.noised_images import WeightedBatch, draw_weighted, num_images, weights_of
from diffprune.pruning.compensation.norm_fit import NormFit
from diffprune.pruning.surgery import prune_denoiser
from diffprune.runs.atomic_files import read_json
from diffprune.stages.plan_stage import plan_model
from diffprune.stages.prune_stage import SOLVED, prune_model
from tests.conftest import tiny_pipeline, tiny_unet

IMAGES = PruneOptions(num_compensation_images=32)


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def calibration(num: int = 24) -> Calibration:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn(num, 1, 16, 16, generator=generator).clamp(-1, 1)
    return Calibration(clean, clean, tiny_pipeline().scheduler)


def plan_for(denoiser: nn.Module) -> Plan:
    return diffprune.plan(denoiser, criterion="magnitude", ratio=0.4)


def compensated(dense: ModelMixin, small: ModelMixin, plan: Plan, **options: Any) -> Compensation:
    groups = find_groups(dense, kinds=plan.kinds)
    return compensate(dense, small, plan, calibration(), IMAGES, groups=groups, batch_size=16, **options)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def fitted(layer: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> LayerFit:
    """A fit with the rows of all batches, the last of them held out."""
    fit = LayerFit("layer", layer, generator(), 48)
    for number, (x, target) in enumerate(batches):
        weights = torch.ones(len(x), dtype=torch.float64)
        fit.add(x, target, weights, held_out=number == len(batches) - 1)
    return fit


LAYERS = {
    "conv": lambda channels: nn.Conv2d(channels, 5, 3, padding=1),
    "strided": lambda channels: nn.Conv2d(channels, 5, 3, stride=2, padding=1, bias=False),
    "dilated": lambda channels: nn.Conv2d(channels, 5, 3, dilation=2),
    "conv1d": lambda channels: nn.Conv1d(channels, 5, 3, padding=1),
    "conv3d": lambda channels: nn.Conv3d(channels, 5, (1, 3, 3), padding=(0, 1, 1)),
    "linear": lambda channels: nn.Linear(channels, 5),
}


def draw(kind: str, channels: int, generator: torch.Generator) -> Tensor:
    shapes = {"conv1d": (8, channels, 30), "conv3d": (8, channels, 3, 7, 7), "linear": (8, 20, channels)}
    return torch.randn(shapes.get(kind, (8, channels, 9, 9)), generator=generator, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_exact_where_removed_inputs_are_combinations_of_kept_ones(kind: str) -> None:
    random = generator()
    dense, small = LAYERS[kind](6).double(), LAYERS[kind](4).double()
    small.weight.copy_(dense.weight[:, :4])
    if dense.bias is not None:
        small.bias.copy_(dense.bias)
    mixing = torch.randn(2, 4, generator=random, dtype=torch.float64)
    batches, after = [], []
    for _ in range(3):
        x = draw(kind, 4, random)
        channels_last = x if kind == "linear" else x.movedim(1, -1)
        whole = torch.cat([channels_last, channels_last @ mixing.T], -1)
        target = dense(whole if kind == "linear" else whole.movedim(-1, 1))
        batches.append((x, target))
        after.append(target)
    wrong = max(float((small(x) - target).abs().max()) for x, target in batches)
    fit = fitted(small, batches).finish()
    assert fit is not None
    assert fit.changed
    assert wrong > 0.1
    assert max(float((small(x) - target).abs().max()) for x, target in batches) < 1e-6


@torch.no_grad()
def test_a_transformer_is_exact_after_its_duplicate_neurons_are_removed() -> None:
    dense = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval().double()  # fmt: skip
    neurons = [group for group in find_groups(dense) if group.kind == "neurons"]
    half = neurons[0].num_units // 2
    for group in neurons:
        first = dense.get_submodule(group.name)
        first.weight[half:] = first.weight[:half]
        first.bias[half:] = first.bias[:half]
    kept = {group.name: tuple(range(half)) for group in neurons}
    small = remove_units(dense, neurons, kept)
    labels = {"class_labels": torch.arange(8)}
    batches = []
    for number in range(3):
        noisy = torch.randn(8, 4, 8, 8, generator=generator().manual_seed(number), dtype=torch.float64)
        noisy_images = NoisyBatch(noisy, torch.arange(8) * 100, labels, noisy)
        batches.append(WeightedBatch(noisy_images, torch.ones(8, dtype=torch.float64), number == 2))
    rows = kept_indices(neurons, kept, dense).rows
    result = fit_layers(dense, small, rows, {path: path for path, _ in dense.named_modules()}, batches, seed=0)
    assert result.output_error[0] > 1e-6
    assert result.output_error[1] < 1e-6 * result.output_error[0]
    batch = batches[0].noisy
    before, after = (predict(model, batch.noisy, batch.timesteps, labels) for model in (dense, small))
    assert float((before - after).abs().max()) < 1e-5


@torch.no_grad()
def test_streaming_sums_equal_least_squares_on_all_rows_at_once() -> None:
    random = generator()
    layer = nn.Linear(4, 3).double()
    before = copy.deepcopy(layer)
    batches = [(draw("linear", 4, random) + 5, torch.randn(8, 20, 3, generator=random).double()) for _ in range(3)]
    fit = fitted(layer, batches).finish()
    assert fit is not None
    x, y = (torch.cat([batch[i].flatten(0, 1) for batch in batches[:2]]) for i in range(2))
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1), y).solution
    torch.testing.assert_close(layer.weight, solution[:4].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.bias, solution[4], rtol=1e-4, atol=1e-4)
    errors = [float((model(x) - y).square().sum() / y.square().sum()) for model in (before, layer)]
    assert fit.fitted == pytest.approx(errors, rel=1e-6)


@torch.no_grad()
def test_a_layer_whose_inputs_are_zero_is_not_changed() -> None:
    layer = nn.Linear(4, 3)
    before = copy.deepcopy(layer.state_dict())
    nothing = torch.zeros(8, 20, 4)
    fit = fitted(layer, [(nothing, torch.randn(8, 20, 3, generator=generator())) for _ in range(3)]).finish()
    assert fit is not None
    assert not fit.changed
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@torch.no_grad()
def test_a_correction_that_fails_on_held_out_images_is_rejected() -> None:
    random = generator()
    layer = nn.Linear(4, 3)
    before = copy.deepcopy(layer.state_dict())
    batches = [(torch.randn(8, 1, 4, generator=random), torch.randn(8, 1, 3, generator=random)) for _ in range(2)]
    x = 10 * torch.randn(8, 20, 4, generator=random)
    fit = fitted(layer, [*batches, (x, layer(x) + 1e-3)]).finish()
    assert fit is not None
    assert not fit.changed
    assert fit.held_out[0] == fit.held_out[1]
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4)])
def test_a_norm_recovers_a_scale_and_shift_per_channel(norm: nn.Module) -> None:
    random = generator()
    scale, shift = torch.rand(4, generator=random) + 0.5, torch.randn(4, generator=random)
    fit = NormFit("norm", norm)
    if norm.__class__ is nn.RMSNorm:
        shift = torch.zeros(4)
    if isinstance(norm, nn.GroupNorm):
        scale, shift = scale[:, None, None], shift[:, None, None]
    batches = [torch.randn((8, 4, 5, 5) if norm.__class__ is nn.GroupNorm else (8, 5, 4), generator=random)] * 2
    targets = [norm(x) * scale + shift for x in batches]
    for number, (x, target) in enumerate(zip(batches, targets, strict=True)):
        fit.add(x, target, torch.ones(8), held_out=number == 1)
    result = fit.finish()
    assert result is not None
    assert result.fitted[1] < 1e-9 < result.fitted[0]
    torch.testing.assert_close(norm(batches[0]), targets[0], rtol=1e-4, atol=1e-4)


def test_no_layer_of_a_unet_is_worse_than_sliced_and_the_output_error_falls() -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    small = prune_denoiser(prepare(dense, plan.kinds), plan)
    before = copy.deepcopy(dense.state_dict())
    result = compensated(dense, small, plan)
    assert len(result.layers) > 20
    assert all(fit.fitted[1] <= fit.fitted[0] and fit.held_out[1] <= fit.held_out[0] for fit in result.layers)
    assert result.output_error[1] < 0.5 * result.output_error[0]
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    drawn = [batch for batch in draw_weighted(calibration(), IMAGES, 16) if batch.held_out]
    with torch.no_grad():
        errors = [
            (
                predict(small, b.noisy.noisy, b.noisy.timesteps, {})
                - predict(dense, b.noisy.noisy, b.noisy.timesteps, {})
            )
            for b in drawn
        ]
    assert float(torch.cat(errors).square().mean()) == pytest.approx(result.output_error[1], rel=1e-4)


def test_kept_blocks_compensate_for_removed_ones() -> None:
    dense = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=4, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    plan = diffprune.plan(dense, criterion="random", kinds=("blocks",), ratio=0.25)
    small = prune_denoiser(prepare(dense, plan.kinds), plan)
    unlabeled = calibration()
    labeled = Calibration(
        unlabeled.clean, unlabeled.noise, unlabeled.scheduler, {"class_labels": torch.arange(24) % 10}
    )
    result = compensate(dense, small, plan, labeled, IMAGES, groups=find_groups(dense, kinds=plan.kinds), batch_size=16)
    assert len(small.transformer_blocks) == 3
    assert result.layers
    assert result.helped


def test_an_interrupted_compensation_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    whole, again = prune_denoiser(prepare(dense, plan.kinds), plan), prune_denoiser(prepare(dense, plan.kinds), plan)
    expected = compensated(dense, whole, plan)
    save, solved = SolvedLayers.save, []

    def save_some(store: SolvedLayers, fit: object, layer: nn.Module) -> None:
        if len(solved) == 9:
            raise KeyboardInterrupt
        solved.append(fit)
        save(store, fit, layer)

    monkeypatch.setattr(SolvedLayers, "save", save_some)
    with pytest.raises(KeyboardInterrupt):
        compensated(dense, again, plan, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 9
    monkeypatch.setattr(SolvedLayers, "save", save)
    again = prune_denoiser(prepare(dense, plan.kinds), plan)
    result = compensated(dense, again, plan, folder=tmp_path)
    assert result == expected
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_offloaded_weights_are_fitted_alike() -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    near, far = prune_denoiser(prepare(dense, plan.kinds), plan), prune_denoiser(prepare(dense, plan.kinds), plan)
    expected = compensated(dense, near, plan)
    assert compensated(dense, far, plan, offloaded=True) == expected
    assert all(torch.equal(value, near.state_dict()[name]) for name, value in far.state_dict().items())


def test_weights_of_timesteps_fall_with_the_weighting() -> None:
    scheduler, t = tiny_pipeline().scheduler, torch.arange(20)
    uniform, snr, log = (
        weights_of(scheduler, t, PruneOptions(compensation_weighting=kind)) for kind in ("uniform", "snr", "log")
    )
    assert bool((uniform == 1).all())
    assert snr[0] < 0.1 < snr[-1] <= 1
    assert bool((log.diff() > 0).all())
    assert (float(log[0]), float(log[-1])) == pytest.approx((0.1, 1.0))


def test_large_images_are_fewer_by_default() -> None:
    scheduler = tiny_pipeline().scheduler
    numbers = []
    for shape in ((3, 32, 32), (4, 64, 64), (4, 128, 128), (3, 256, 256), (16, 21, 60, 104)):
        some = torch.zeros(1, *shape)
        numbers.append(num_images(Calibration(some, some, scheduler), PruneOptions()))
    assert numbers == [256, 256, 64, 21, 8]
    assert num_images(Calibration(some, some, scheduler), PruneOptions(num_compensation_images=100)) == 100


@torch.no_grad()
def reference_fit(dense: nn.Module, small: nn.Module, kept: KeptIndices, batches: list[WeightedBatch]) -> None:
    """`fit_layers` without paused passes: whole passes through both models for each layer."""

    def passes(model: nn.Module, layer: nn.Module, *, output: bool) -> list[Tensor]:
        tensors: list[Tensor] = []

        def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: Tensor) -> None:
            tensors.append(result if output else next(iter((*args, *kwargs.values()))).clone())

        handle = layer.register_forward_hook(note, with_kwargs=True)
        for batch in batches:
            predict(model, batch.noisy.noisy, batch.noisy.timesteps, batch.noisy.condition)
        handle.remove()
        return tensors

    order: list[str] = []
    handles = [
        layer.register_forward_hook(lambda layer, args, result, path=path: order.append(path))
        for path, layer in small.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.GroupNorm))
    ]
    predict(small, batches[0].noisy.noisy, batches[0].noisy.timesteps, batches[0].noisy.condition)
    for handle in handles:
        handle.remove()
    per_image = -(-ROWS // sum(len(batch.weights) for batch in batches if not batch.held_out))
    for number, path in enumerate(order):
        layer, random = small.get_submodule(path), torch.Generator().manual_seed(number)
        fit: LayerFit | NormFit = (
            NormFit(path, layer) if isinstance(layer, nn.GroupNorm) else LayerFit(path, layer, random, per_image)
        )
        inputs = passes(small, layer, output=False)
        targets = passes(dense, dense.get_submodule(path), output=True)
        rows = kept.rows.get((path, "out"))
        for batch, x, target in zip(batches, inputs, targets, strict=True):
            if rows is not None:
                target = target.index_select(channel_axis(layer, target), rows)
            fit.add(x, target, batch.weights, held_out=batch.held_out)
        fit.finish()


def test_paused_passes_fit_as_whole_passes_for_each_layer_do() -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    small, reference = prune_denoiser(prepare(dense), plan), prune_denoiser(prepare(dense), plan)
    groups, options = find_groups(dense), PruneOptions(num_compensation_images=8)
    kept = kept_indices(groups, {name: group.kept for name, group in plan.groups.items()}, dense)
    before = copy.deepcopy(small.state_dict())
    reference_fit(dense, reference, kept, draw_weighted(calibration(), options, 4))
    compensate(dense, small, plan, calibration(), options, groups=groups, batch_size=4)
    assert sum(not torch.equal(value, before[name]) for name, value in small.state_dict().items()) > 20
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=0, atol=1e-6)


def test_the_number_of_threads_does_not_grow_with_the_number_of_batches() -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    options, groups, most = PruneOptions(num_compensation_images=16), find_groups(dense), {}
    for batch_size in (20, 1):
        small, numbers = prune_denoiser(prepare(dense), plan), []
        for model in (dense, small):
            model.conv_out.register_forward_hook(lambda *_, n=numbers: n.append(threading.active_count()))
        compensate(dense, small, plan, calibration(), options, groups=groups, batch_size=batch_size)
        most[batch_size] = max(numbers)
    assert most[1] == most[20]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("offloaded", [False, True])
def test_an_error_inside_a_pass_restores_both_models(error: type[BaseException], offloaded: bool) -> None:
    dense = tiny_unet()
    plan = plan_for(dense)
    small, calls = prune_denoiser(prepare(dense), plan), []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise error("inside a pass")

    dense.mid_block.register_forward_pre_hook(fail)
    hooks = [[len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] for model in (dense, small)]
    attributes = [[{*vars(m)} for m in model.modules()] for model in (dense, small)]
    num_threads = threading.active_count()
    with pytest.raises(error, match="inside a pass"):
        compensated(dense, small, plan, offloaded=offloaded)
    assert hooks == [
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] for model in (dense, small)
    ]
    assert attributes == [[{*vars(m)} for m in model.modules()] for model in (dense, small)]
    assert threading.active_count() == num_threads


def test_an_error_in_a_pass_reaches_the_caller() -> None:
    dense = tiny_unet()
    small = prune_denoiser(prepare(dense), plan_for(dense))
    batches = draw_weighted(calibration(), IMAGES, 16)
    broken = [
        WeightedBatch(NoisyBatch(b.noisy.noisy[:, :, :3], b.noisy.timesteps, {}, b.noisy.target), b.weights, b.held_out)
        for b in batches
    ]
    with pytest.raises(RuntimeError):
        fit_layers(dense, small, {}, {p: p for p, _ in dense.named_modules()}, broken, seed=0)


def test_prune_compensates_with_images_and_records_it(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    options = PruneOptions(num_compensation_images=16)
    plan = plan_for(pipeline)
    assert prune_model(pipeline, options, plan)[1] is None
    with_data = options.model_copy(update={"data": "digits"})
    small, result = prune_model(pipeline, with_data, plan)
    assert result is not None
    assert small.unet.pruning_provenance[-1]["compensation"] == result.summary()
    sliced, _ = prune_model(pipeline, with_data.model_copy(update={"compensate": False}), plan)
    expected = prune_denoiser(prepare(pipeline.unet, plan.kinds), plan)
    assert all(torch.equal(v, sliced.unet.state_dict()[k]) for k, v in expected.state_dict().items())


def test_images_are_generated_once_for_scores_and_compensation(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning later by the saved plan generates the same images again and returns the same model."""
    drawn = []

    def counted(
        denoiser: nn.Module, process: DiffusionProcess, options: PlanOptions, device: torch.device
    ) -> LabeledImages:
        drawn.append(options.num_calibration_images)
        return generate_images(denoiser, process, options, device)

    monkeypatch.setattr("diffprune.calibration.make_calibration.generate_images", counted)
    scoring = [
        "--data",
        "generated",
        "--num-calibration-images",
        "6",
        "--generation-steps",
        "2",
        "--criterion",
        "taylor",
    ]
    carrying, at_once, later = ["--num-compensation-images", "8"], tmp_path / "at-once", tmp_path / "later"
    assert main(["prune", str(pipeline_folder), *scoring, *carrying, "--out", str(at_once)]) == 0
    assert drawn == [6]
    assert main(["plan", str(pipeline_folder), *scoring, "--out", str(tmp_path / "plan")]) == 0
    by_plan = ["--plan", str(tmp_path / "plan" / "plan.json"), *carrying]
    assert main(["prune", str(pipeline_folder), *by_plan, "--out", str(later)]) == 0
    assert drawn == [6, 6, 6]
    weights = [(folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for folder in (at_once, later)]
    assert weights[0] == weights[1]
    assert read_json(at_once / "compensation.json") == read_json(later / "compensation.json")


def test_the_data_option_replaces_the_images_of_the_plan() -> None:
    pipeline, options = tiny_pipeline(), PruneOptions(num_compensation_images=8)
    scoring = PlanOptions(criterion="taylor", data="generated", num_calibration_images=6, generation_steps=2)
    plan = plan_model(pipeline, scoring)
    at_once, own = prune_model(pipeline, options, plan_options=scoring)[1], prune_model(pipeline, options, plan)[1]
    digits = prune_model(pipeline, options.model_copy(update={"data": "digits"}), plan)[1]
    assert None is not at_once == own != digits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensate": True}, "needs images"),
        ({"compensate": True, "reinit": True, "data": "digits"}, "not supported with reinit"),
    ],
)
def test_impossible_compensation_raises_when_requested(options: dict[str, object], message: str) -> None:
    with pytest.raises(diffprune.OptionError, match=message):
        diffprune.prune(tiny_pipeline(), plan_for(tiny_pipeline()), **options)


def test_the_folder_and_the_report_record_the_compensation(pipeline_folder: Path, tmp_path: Path) -> None:
    words = ["--criterion", "magnitude", "--data", "digits", "--num-calibration-images", "16"]
    words += ["--num-compensation-images", "32", "--ratio", "0.4"]
    assert main(["prune", str(pipeline_folder), *words, "--out", str(tmp_path / "pruned")]) == 0
    summary = read_json(tmp_path / "pruned" / "run.json")["result"]["compensation"]
    layers = read_json(tmp_path / "pruned" / "compensation.json")["layers"]
    assert summary["helped"]
    assert len(layers) == summary["layers_fitted"] + summary["layers_left"]
    assert not (tmp_path / "pruned" / SOLVED).exists()
    manifest = read_json(tmp_path / "pruned" / "unet" / "pruning.json")
    assert manifest["provenance"][-1]["compensation"] == summary
    assert main(["report", str(tmp_path / "pruned"), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"{summary['output_error_before']:.4g} to {summary['output_error_after']:.4g}" in page
    assert f"{summary['layers_fitted']} layers were fitted" in page


def test_missing_images_leave_no_folder(pipeline_folder: Path, tmp_path: Path) -> None:
    words = ["prune", str(pipeline_folder), "--criterion", "magnitude", "--data", str(tmp_path / "nowhere")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
