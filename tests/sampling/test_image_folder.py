"""Sampled folders: exactly N images, the same whatever the batch, the process or the interruption."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import diffprune
from diffprune.data.images import image_files
from diffprune.errors import ModelError, OptionError
from diffprune.options import SampleOptions
from diffprune.pipelines.diffusion import process_of
from diffprune.sampling.image_folder import sample_to_folder
from diffprune.sampling.sampler import image_generator, slerp
from tests.conftest import tiny_pipeline, tiny_unet
from tests.helpers.forks import Forks


def pixels(folder: Path) -> torch.Tensor:
    return torch.stack([pil_to_tensor(Image.open(path)) for path in sorted(folder.glob("*.png"))]).int()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 1.0},
        {"sampler": "ddpm", "grid": "quad"},
        {"scheduler": "own"},
        {"scheduler": "DPMSolverMultistepScheduler"},
        {"scheduler": "EulerAncestralDiscreteScheduler"},
        {"interpolate": (3, 5)},
    ],
    ids=str,
)
def test_images_do_not_depend_on_the_batch_size(options: dict[str, object], tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    for batch_size in (1, 3, 7):
        paths = diffprune.sample(pipeline, tmp_path / str(batch_size), num=7, steps=4, batch_size=batch_size, **options)
        assert [p.name for p in paths] == [f"{i:06d}.png" for i in range(7)]
    one, three, seven = (pixels(tmp_path / str(b)) for b in (1, 3, 7))
    assert (one - three).abs().max() <= 1
    assert (one - seven).abs().max() <= 1
    assert len(torch.unique(one.flatten(1), dim=0)) == 7


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    for seed in (0, 1):
        diffprune.sample(tiny_pipeline(), tmp_path / str(seed), num=2, steps=2, seed=seed)
    assert not torch.equal(pixels(tmp_path / "0"), pixels(tmp_path / "1"))


def test_missing_images_are_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    pipeline, options = tiny_pipeline(), SampleOptions(num=5, steps=3, batch_size=2)
    sample_to_folder(pipeline.unet, process_of(pipeline), tmp_path, options)
    before, written = pixels(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    (tmp_path / "000003.png").unlink()
    sample_to_folder(pipeline.unet, process_of(pipeline), tmp_path, options)
    assert torch.equal(pixels(tmp_path), before)
    again = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert {p.name for p in written if written[p] != again[p]} == {"000003.png"}


def test_two_processes_draw_the_images_of_one(forks: Forks, pipeline_folder: Path, tmp_path: Path) -> None:
    words = ["sample", str(pipeline_folder), "--num", "5", "--steps", "3", "--batch-size", "2"]
    words += ["--device", "cpu", "--mixed-precision", "no"]
    two = forks.run([*words, "--out", tmp_path / "two"], num_processes=2)
    assert two.status == 0, two.output
    pipeline = diffprune.load_pipeline(pipeline_folder)
    diffprune.sample(pipeline, tmp_path / "one", num=5, steps=3, batch_size=2)
    assert torch.equal(pixels(tmp_path / "one"), pixels(tmp_path / "two"))
    assert (tmp_path / "two" / "run.json").read_text().count('"finished"') == 1


def test_a_scheduler_draws_what_its_pipeline_draws(tmp_path: Path) -> None:
    """diffusers' own DDPM pipeline, its noise handed in by the generators of the images."""
    pipeline = tiny_pipeline()
    diffprune.sample(pipeline, tmp_path, num=3, steps=5, scheduler="own")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=3, generator=[image_generator(0, i) for i in range(3)], num_inference_steps=5, output_type="np"
    ).images
    assert (pixels(tmp_path) - torch.from_numpy(theirs * 255).round().int().permute(0, 3, 1, 2)).abs().max() <= 1


def test_interpolated_images_begin_and_end_at_the_two_named(tmp_path: Path) -> None:
    pipeline, options = tiny_pipeline(), {"steps": 4, "batch_size": 8}
    diffprune.sample(pipeline, tmp_path / "plain", num=4, **options)
    diffprune.sample(pipeline, tmp_path / "between", num=5, interpolate=(1, 3), **options)
    plain, between = pixels(tmp_path / "plain"), pixels(tmp_path / "between")
    assert (between[0] - plain[1]).abs().max() <= 1
    assert (between[4] - plain[3]).abs().max() <= 1
    assert (between[2] - plain[1]).abs().max() > 1


def test_the_arc_between_two_noises_keeps_their_length() -> None:
    first, second = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    middle = slerp(first, second, 0.5)
    assert float(middle.norm() / first.norm()) == pytest.approx(1, abs=0.05)
    assert float(torch.dot(middle.flatten(), first.flatten())) == pytest.approx(
        float(torch.dot(middle.flatten(), second.flatten())), rel=0.05
    )


def test_a_sequence_keeps_the_image_after_every_step(tmp_path: Path) -> None:
    diffprune.sample(tiny_pipeline(), tmp_path, num=2, steps=4, sequence=True)
    frames = pixels(tmp_path / "sequences" / "000001")
    assert len(frames) == 4
    assert torch.equal(frames[-1], pixels(tmp_path)[1])
    assert not torch.equal(frames[0], frames[-1])
    with Image.open(tmp_path / "sequences" / "000001.gif") as animation:
        assert animation.n_frames >= 3
    assert [p.name for p in image_files(tmp_path)] == ["000000.png", "000001.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "DDIMSchduler"}, "did you mean 'DDIMScheduler'"),
        ({"scheduler": "UNet2DModel"}, "diffusers has no 'UNet2DModel'"),
        ({"scheduler": "DDIMScheduler", "eta": 0.5}, "eta: has no effect with scheduler"),
        ({"scheduler": "DDIMScheduler", "steps": 21}, "the model has 20 timesteps"),
        ({"interpolate": (1, 1)}, "two different image indices"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        diffprune.sample(tiny_pipeline(), tmp_path, **{"num": 1, "steps": 2, **options})
    assert not list(tmp_path.iterdir())


def test_python_keeps_images_of_one_model_and_options_apart(tmp_path: Path) -> None:
    pipeline, other = tiny_pipeline(), tiny_pipeline()
    with torch.no_grad():
        other.unet.conv_in.bias.add_(1)
    diffprune.sample(pipeline, tmp_path / "images", num=2, steps=2)
    for model, seed in ((pipeline, 1), (other, 0)):
        with pytest.raises(diffprune.FolderError, match="add --overwrite"):
            diffprune.sample(model, tmp_path / "images", num=2, steps=2, seed=seed)
    (tmp_path / "images" / "000001.png").unlink()
    again = diffprune.sample(pipeline, tmp_path / "images", num=2, steps=2)
    assert all(path.exists() for path in again)


def test_broken_models_and_schedules_are_refused_instead_of_drawn_black(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        diffprune.sample(pipeline, tmp_path / "a", num=1, steps=2)
    flow = DDPMPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ModelError, match="is supported for text-conditioned pipelines"):
        diffprune.sample(flow, tmp_path / "b", num=1, steps=2)
    with pytest.raises(ModelError, match="has 1 input and 3 output channels"):
        diffprune.sample(tiny_pipeline(out_channels=3), tmp_path / "c", num=1, steps=2)
    assert not list(tmp_path.iterdir())


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    """Twice as many channels come out as go in: the second half does not change the image."""
    pipelines = [tiny_pipeline(out_channels=2) for _ in range(2)]
    with torch.no_grad():
        pipelines[1].unet.conv_out.weight[1:].add_(1.0)
    first, second = (diffprune.sample(p, tmp_path / str(i), num=1, steps=2)[0] for i, p in enumerate(pipelines))
    assert first.read_bytes() == second.read_bytes()
