"""Each score against a two-layer network worked out by hand."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

import diffprune
from diffprune.calibration.calibration_set import Calibration, LabeledImages, calibrate, noisy_batch
from diffprune.compute.placement import placed
from diffprune.criteria import CRITERIA
from diffprune.criteria.obs import DAMPING
from diffprune.criteria.unit_gradients import random_directions, unit_gradients
from diffprune.errors import ModelError, OptionError
from diffprune.groups import Group, Slice, find_groups
from diffprune.options import PlanOptions, parse_options
from diffprune.pipelines.diffusion import process_of
from diffprune.runs.accumulator import Accumulator

GROUP = Group("first", "channels", 2, (Slice("first", "out", 0, 1), Slice("second", "in", 0, 1)))
A = torch.tensor([[1.0], [3.0]])
B = torch.tensor([[2.0, -1 / 3]])


class TwoLayers(nn.Module):
    """y = B A x, one hidden unit per row of A; the time is ignored."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.first, self.second = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.first.weight.data, self.second.weight.data = A.clone(), B.clone()
        self.config = SimpleNamespace()

    def forward(self, noisy: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        return (self.second(self.first(noisy)),)


def calibration(num_timesteps: int = 5, prediction_type: str = "epsilon") -> Calibration:
    generator = torch.Generator().manual_seed(0)
    scheduler = DDPMScheduler(num_train_timesteps=num_timesteps, prediction_type=prediction_type)
    images, noise = torch.randn(2, 7, 1, 1, 1, generator=generator)
    return Calibration(images, noise, scheduler)


def gradients_by_hand(batch: Calibration, timestep: int) -> tuple[float, Tensor, Tensor]:
    """Loss L = mean (B A x - y)^2, and dL/dA, dL/dB as two-line calculus."""
    a = float(batch.scheduler.alphas_cumprod[timestep])
    x = (a**0.5 * batch.clean + (1 - a) ** 0.5 * batch.noise).flatten()
    y = {
        "epsilon": batch.noise,
        "sample": batch.clean,
        "v_prediction": a**0.5 * batch.noise - (1 - a) ** 0.5 * batch.clean,
    }[batch.scheduler.config.prediction_type].flatten()
    error = (B @ A).item() * x - y
    slope = 2 * (error * x).mean()
    return float((error**2).mean()), slope * B.T, slope * A.T


def all_reduce_sum(batch: Calibration, timesteps: range) -> tuple[Tensor, Tensor]:
    parts = [gradients_by_hand(batch, t)[1:] for t in timesteps]
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def scored(name: str, batch: Calibration | None, **options: object) -> Tensor:
    settings = PlanOptions(criterion=name, **options)
    return CRITERIA[name](TwoLayers(), [GROUP], batch, settings, Accumulator()).values["first"]


def test_magnitude_is_the_sum_of_squared_weights() -> None:
    assert torch.allclose(scored("magnitude", None), torch.tensor([1 + 4, 9 + 1 / 9], dtype=torch.float64))


def test_random_is_drawn_by_seed() -> None:
    assert torch.equal(scored("random", None, seed=3), scored("random", None, seed=3))
    assert not torch.equal(scored("random", None, seed=3), scored("random", None, seed=4))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_taylor_is_the_absolute_signed_sum(prediction_type: str) -> None:
    batch = calibration(prediction_type=prediction_type)
    g_a, g_b = all_reduce_sum(batch, range(5))
    expected = ((A * g_a).sum(1) + (B * g_b).sum(0)).abs().double()
    assert torch.allclose(scored("taylor", batch), expected, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_diff_pruning_sums_absolute_terms(prediction_type: str) -> None:
    batch = calibration(prediction_type=prediction_type)
    g_a, g_b = all_reduce_sum(batch, range(5))
    expected = ((A * g_a).abs().sum(1) + (B * g_b).abs().sum(0)).double()
    assert torch.allclose(scored("diff-pruning", batch, threshold=0.0), expected, rtol=1e-4)


def test_diff_pruning_with_power_two_sums_squares() -> None:
    g_a, g_b = all_reduce_sum(calibration(), range(5))
    expected = ((A * g_a).square().sum(1) + (B * g_b).square().sum(0)).double()
    assert torch.allclose(scored("diff-pruning", calibration(), threshold=0.0, power=2), expected, rtol=1e-4)


def terms_by_timestep(batch: Calibration) -> tuple[list[Tensor], list[Tensor]]:
    """w * g_t of both layers, per timestep."""
    parts = [gradients_by_hand(batch, t)[1:] for t in range(batch.num_timesteps)]
    return [A * g for g, _ in parts], [B * g for _, g in parts]


def test_first_order_sums_squares() -> None:
    in_a, in_b = (sum(terms) for terms in terms_by_timestep(calibration()))
    expected = (in_a.square().sum(1) + in_b.square().sum(0)).double()
    assert torch.allclose(scored("first-order", calibration()), expected, rtol=1e-4)


def test_second_order_adds_the_curvature() -> None:
    in_a, in_b = terms_by_timestep(calibration())
    first, second = ((sum(t) - sum(term.square() for term in t) / 2).abs() for t in (in_a, in_b))
    expected = (first.sum(1) + second.sum(0)).double()
    assert torch.allclose(scored("second-order", calibration()), expected, rtol=1e-4)


def test_absolute_terms_do_not_cancel_between_timesteps() -> None:
    in_a, in_b = terms_by_timestep(calibration())
    expected = (sum(t.abs() for t in in_a).sum(1) + sum(t.abs() for t in in_b).sum(0)).double()
    assert torch.allclose(scored("absolute", calibration()), expected, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [128, 3])
def test_fisher_squares_what_each_image_says_of_the_whole_unit(batch_size: int) -> None:
    batch = calibration()
    expected = torch.zeros(2, dtype=torch.float64)
    for image, noise in zip(batch.clean.split(1), batch.noise.split(1), strict=True):
        in_a, in_b = terms_by_timestep(Calibration(image, noise, batch.scheduler))
        expected += sum((a.sum(1) + b.sum(0)).square().double() for a, b in zip(in_a, in_b, strict=True))
    assert torch.allclose(scored("fisher", batch, batch_size=batch_size), expected, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [128, 3])
def test_gn_fisher_squares_how_each_output_moves_along_a_random_direction(batch_size: int) -> None:
    batch, settings = calibration(), PlanOptions(criterion="gn-fisher")
    expected = torch.zeros(2, dtype=torch.float64)
    for t in range(5):
        (seen,) = batch.batches(t, 128)
        along = random_directions(batch, settings)(t)
        by_unit = along.flatten()[:, None] * seen.noisy.flatten()[:, None] * (A.flatten() * B.flatten())
        expected += (2 * by_unit).square().double().sum(0)  # once for the row that makes the unit, once for its column
    assert torch.allclose(scored("gn-fisher", batch, batch_size=batch_size), expected, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [128, 3])
def test_obs_removes_the_cheapest_unit_first_and_lets_the_other_make_up_for_it(batch_size: int) -> None:
    batch = calibration()
    hidden = torch.cat(
        [seen.noisy.flatten()[:, None] * A.flatten() for t in range(5) for seen in batch.batches(t, 128)]
    )
    along = torch.cat([random_directions(batch, PlanOptions(criterion="obs"))(t).flatten() for t in range(5)]).double()
    hessian = (hidden.T @ hidden / len(hidden)).double()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(2)
    weights, costs = B.flatten().double(), B.flatten().double().square() / hessian.inverse().diagonal()
    first = int(costs.argmin())
    other = 1 - first
    taken_over = weights[other] + weights[first] * hessian[first, other] / hessian[other, other]
    costs[other] = max(costs[first], taken_over.square() * hessian[other, other])
    assert torch.allclose(scored("obs", batch, batch_size=batch_size), costs * along.square().mean(), rtol=1e-4)


def test_unit_gradients_are_the_derivative_by_a_factor_before_the_unit(pipeline: object) -> None:
    """Scaling all rows of one unit in every layer that makes it moves the loss by what the rows' terms say."""
    unet, groups = pipeline.unet, find_groups(pipeline.unet)
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 2, 1, 16, 16, generator=generator)
    batch, settings = (
        Calibration(images, noise, pipeline.scheduler),
        PlanOptions(criterion="fisher", timestep_stride=20),
    )
    group = next(g for g in groups if any(part.module.endswith("to_v") for part in g.slices))
    rows = dataclasses.replace(group, slices=tuple(part for part in group.slices if part.dim == "out"))
    with placed(unet, torch.device("cpu")):
        (told,) = unit_gradients(unet, [rows], batch, settings, Accumulator())
    unit, step = 1, 1e-2
    losses = []
    for factor in (1 + step, 1 - step):
        scaled = copy.deepcopy(unet)
        with torch.no_grad():
            for part in rows.slices:
                layer = scaled.get_submodule(part.module)
                mine = slice(part.start + unit * part.width, part.start + (unit + 1) * part.width)
                layer.weight[mine] *= factor
                layer.bias[mine] *= factor
            (seen,) = batch.batches(0, 2)
            losses.append(
                (scaled(seen.noisy, seen.timesteps).sample - seen.target).square().flatten(1).mean(1).double()
            )
    assert torch.allclose((losses[0] - losses[1]) / (2 * step), told[group.name][:, unit], rtol=0.02, atol=1e-6)


def test_every_criterion_scores_a_real_model(pipeline: object) -> None:
    groups, images = find_groups(pipeline.unet), torch.zeros(2, 1, 16, 16)
    batch = calibrate(LabeledImages(images), process_of(pipeline), PlanOptions(num_noises=2), torch.device("cpu"))
    assert batch.clean.shape == (4, 1, 16, 16)
    for name, criterion in CRITERIA.items():
        with placed(pipeline.unet, torch.device("cpu")):
            options = PlanOptions(criterion=name, timestep_stride=10)
            scores = criterion(pipeline.unet, groups, batch, options, Accumulator())
        assert scores.criterion == name
        for group in groups:
            values = scores.values[group.name]
            assert values.shape == (group.num_units,)
            assert bool(values.isfinite().all())
            assert bool((values >= 0).all())


def test_a_stage_of_timesteps_can_be_scored_alone() -> None:
    parts = [gradients_by_hand(calibration(), t)[1:] for t in (1, 2, 3)]
    g_a, g_b = sum(p[0] for p in parts), sum(p[1] for p in parts)
    expected = ((A * g_a).abs().sum(1) + (B * g_b).abs().sum(0)).double()
    stage = {"first_timestep": 1, "last_timestep": 3, "threshold": 0.0}
    assert torch.allclose(scored("diff-pruning", calibration(), **stage), expected, rtol=1e-4)
    with pytest.raises(ModelError, match="no timesteps to score from 9"):
        scored("diff-pruning", calibration(), first_timestep=9)
    with pytest.raises(OptionError, match=r"last_timestep: got 2, expected at least first_timestep \(3\)"):
        parse_options(PlanOptions, {"first_timestep": 3, "last_timestep": 2}, what="")


def test_a_model_calibrates_on_its_own_images(pipeline: object) -> None:
    options = {"data": "generated", "num_calibration_images": 3, "generation_steps": 2, "timestep_stride": 10}
    one, two = (diffprune.plan(pipeline, batch_size=size, **options) for size in (3, 2))
    assert one.details["losses"] == pytest.approx(two.details["losses"], rel=1e-3)
    assert one.details["timesteps_used"] >= 1


def test_the_timestep_that_crosses_the_threshold_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    batch = calibration(200)
    losses = [gradients_by_hand(batch, t)[0] for t in range(200)]
    threshold = 0.5
    crossing = next(t for t in range(1, 200) if losses[t] < threshold * max(losses[:t]))
    assert 1 < crossing < 199, "the case must have a crossing inside"
    g_a, g_b = all_reduce_sum(batch, range(crossing))
    expected = ((A * g_a).abs().sum(1) + (B * g_b).abs().sum(0)).double()
    settings = PlanOptions(criterion="diff-pruning", threshold=threshold, timestep_stride=1)
    result = CRITERIA["diff-pruning"](TwoLayers(), [GROUP], batch, settings, Accumulator())
    assert torch.allclose(result.values["first"], expected, rtol=1e-4)
    assert result.details["stopped_at"] == result.details["timesteps_used"] == crossing
    notice = f"scores: stopped after {crossing} of 200 timesteps: loss below 50 % of the largest"
    assert notice in capsys.readouterr().err


def test_a_stride_visits_every_nth_timestep() -> None:
    parts = [gradients_by_hand(calibration(), t)[1:] for t in (0, 2, 4)]
    g_a, g_b = sum(p[0] for p in parts), sum(p[1] for p in parts)
    expected = ((A * g_a).abs().sum(1) + (B * g_b).abs().sum(0)).double()
    assert torch.allclose(scored("diff-pruning", calibration(), threshold=0.0, timestep_stride=2), expected, rtol=1e-4)


def test_micro_batches_do_not_change_the_scores() -> None:
    whole, parts = (scored("diff-pruning", calibration(), batch_size=b) for b in (128, 3))
    assert torch.allclose(whole, parts, rtol=1e-5)


def test_norm_weights_count_only_when_asked_for(pipeline: object) -> None:
    options = {"data": "digits", "num_calibration_images": 4, "threshold": 0.0, "timestep_stride": 10}
    plain, with_norms = (diffprune.plan(pipeline, criterion="diff-pruning", norms=n, **options) for n in (False, True))
    assert plain.details == with_norms.details
    assert plain.options["norms"] is False
    assert with_norms.options["norms"] is True


def test_a_broken_loss_is_refused(pipeline: object) -> None:
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="loss at timestep 0 is nan"):
        diffprune.plan(pipeline, data="digits", num_calibration_images=4)


def test_scoring_gives_the_model_back_as_it_was(pipeline: object) -> None:
    pipeline.unet.train().requires_grad_(False)
    diffprune.plan(pipeline, criterion="taylor", data="digits", num_calibration_images=4, timestep_stride=10)
    assert pipeline.unet.training
    assert not any(p.requires_grad or p.grad is not None for p in pipeline.unet.parameters())


def test_other_prediction_types_are_refused() -> None:
    config = SimpleNamespace(prediction_type="flow")
    scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.ones(3))
    with pytest.raises(ModelError, match="flow"):
        noisy_batch(scheduler, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), {})


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_schedule_noises_as_ddpm_does(kind: type, prediction_type: str) -> None:
    """Their own add_noise means another process, or depends on the steps that were set last."""
    reference = DDPMScheduler(num_train_timesteps=50, prediction_type=prediction_type)
    scheduler = kind.from_config(reference.config)
    scheduler.set_timesteps(7)
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 20, 49])
    ours = noisy_batch(scheduler, clean, noise, timesteps, {})
    assert torch.allclose(ours.noisy, reference.add_noise(clean, noise, timesteps), atol=1e-6)
    velocity = reference.get_velocity(clean, noise, timesteps)
    assert torch.allclose(ours.target, velocity if prediction_type == "v_prediction" else noise, atol=1e-6)


@pytest.mark.slow  # half precision is slow on CPUs
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_scored_in_fp32(dtype: torch.dtype, pipeline: object) -> None:
    options = {"data": "digits", "num_calibration_images": 4, "timestep_stride": 10}
    pipeline.unet.to(dtype)
    plan = diffprune.plan(pipeline, **options)
    assert {p.dtype for p in pipeline.unet.parameters()} == {dtype}
    small = diffprune.prune(pipeline, plan)
    assert small.unet.dtype == dtype
    pipeline.unet.float()
    assert diffprune.plan(pipeline, **options).groups == plan.groups


def test_obs_samples_the_same_positions_whatever_the_batch_size(unet: UNet2DModel) -> None:
    """Its layers have more positions than are sampled."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 1, 16, 16, generator=generator)
    batch = Calibration(clean, noise, DDPMScheduler(num_train_timesteps=4))
    groups = [group for group in find_groups(unet) if group.kind == "channels"][:2]
    first, second = (
        CRITERIA["obs"](unet, groups, batch, PlanOptions(criterion="obs", batch_size=size), Accumulator()).values
        for size in (2, 5)
    )
    for group in groups:
        torch.testing.assert_close(first[group.name], second[group.name], rtol=1e-3, atol=1e-6)
