"""The recipes of the published experiments, on archives and checkpoints of the real formats, made small."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline, UNet2DConditionModel, UNet2DModel, VQModel
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from diffprune.cli.main import main
from diffprune.conversion.ldm_configs import PUBLISHED
from diffprune.evaluation.inception import URL
from diffprune.options.shipped_recipes import shipped_recipes
from diffprune.pipelines.builtin import ARCHITECTURES
from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding
from diffprune.runs.atomic_files import read_json
from tests.helpers.archives import encoded, noise, write_cifar10, write_lmdb, write_zip
from tests.helpers.research_ddpm import ResearchUNet

ROOT = Path(__file__).parents[2]

Experiment = tuple[str, dict[str, str]]
"""A recipe's name, and what `--set` must say for it to find local files."""

NUM_IMAGES, CHANNELS = 10, 8

LEVELS = {
    "ddpm-cifar10": {"mult": (1, 2, 2, 2), "size": 32},
    "ddpm-celeba64": {"mult": (1, 2, 2, 2, 4), "size": 64},
    "ddpm-lsun256": {"mult": (1, 1, 2, 2, 4, 4), "size": 256},
}


def run(*words: object) -> None:
    assert main([*map(str, words)]) == 0


def ddpm(folder: Path, name: str) -> str:
    """A random research checkpoint of a published architecture, narrowed to 8 channels, converted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResearchUNet(ch=CHANNELS, resolutions=(16,), groups=2, **LEVELS[name])
    weights = network.state_dict()
    torch.save([weights, {"lr": 2e-4}, 1, 1000, {k: v.clone() for k, v in weights.items()}], folder / "model.ckpt")
    widths = [CHANNELS * factor for factor in LEVELS[name]["mult"]]
    config = {**ARCHITECTURES[name], "block_out_channels": widths, "norm_num_groups": 2}
    (folder / "config.json").write_text(json.dumps(config))
    arch = ("--arch", folder / "config.json")
    run("convert", "ddpm", folder / "model.ckpt", *arch, "--out", folder / "model")
    return str(folder / "model")


def cifar10(folder: Path) -> dict[str, str]:
    archive = write_cifar10(folder / "cifar-10-python.tar.gz", noise(NUM_IMAGES), noise(5, seed=1))
    run("data", "cifar10", "--archive", archive, "--md5", "none", "--out", folder / "data")
    return {"model": ddpm(folder, "ddpm-cifar10"), "data": str(folder / "data")}


def celeba64(folder: Path) -> dict[str, str]:
    faces = {f"img_align_celeba/{i:06d}.jpg": encoded(f, "JPEG") for i, f in enumerate(noise(NUM_IMAGES, 218, 178))}
    archive = write_zip(folder / "img_align_celeba.zip", faces)
    words = ("--md5", "none", "--preset", "celeba64", "--out", folder / "data")
    run("data", "celeba", "--archive", archive, *words)
    return {"model": ddpm(folder, "ddpm-celeba64"), "data": str(folder / "data")}


def lsun(folder: Path, name: str) -> dict[str, str]:
    rooms = {f"{i:040x}".encode(): encoded(r, "WEBP") for i, r in enumerate(noise(NUM_IMAGES, 256, 300))}
    lmdb = write_lmdb(folder / "lmdb", rooms)
    run("data", name, "--archive", lmdb, "--format", "parquet", "--out", folder / "data")
    return {"model": ddpm(folder, "ddpm-lsun256"), "data": str(folder / "data")}


def autoencoder() -> VQModel:
    """A narrow VQ-f4."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4, num_vq_embeddings=16, vq_embed_dim=3,
    )  # fmt: skip


def images256(folder: Path, num_classes: int = 0) -> str:
    """Images of 256x256 pixels in a folder, or in a sub-folder per class."""
    for i, pixels in enumerate(noise(NUM_IMAGES, 256, 256)):
        place = folder / f"n{i % num_classes:08d}" if num_classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:05d}.png")
    return str(folder)


def ldm_celebahq(folder: Path) -> dict[str, str]:
    published = PUBLISHED["celebahq-256"]
    config = published.unet() | {
        "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = LDMPipeline(autoencoder(), UNet2DModel(**config), DDIMScheduler(**published.scheduler()))
    pipeline.save_pretrained(folder / "model")
    return {"model": str(folder / "model"), "data": images256(folder / "data")}


def ldm_imagenet(folder: Path) -> dict[str, str]:
    published = PUBLISHED["cin256-v2"]
    config = published.unet() | {
        "block_out_channels": [16, 32, 32, 32], "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = autoencoder(), UNet2DConditionModel(**config), ClassEmbedding(num_classes=5, dim=16)
    pipeline = ClassConditionalLDMPipeline(*parts, DDIMScheduler(**published.scheduler()))
    pipeline.save_pretrained(folder / "model")
    return {"model": str(folder / "model"), "data": images256(folder / "data", num_classes=5)}


MAKERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "cifar10": cifar10,
    "celeba64": celeba64,
    "lsun-church": lambda folder: lsun(folder, "lsun-church"),
    "lsun-bedroom": lambda folder: lsun(folder, "lsun-bedroom"),
    "ldm-celebahq": ldm_celebahq,
    "ldm-imagenet": ldm_imagenet,
}


@pytest.fixture(
    scope="session", params=[pytest.param(n, marks=() if n == "cifar10" else pytest.mark.slow) for n in MAKERS]
)
def experiment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, inception_file: Path
) -> Experiment:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, {**MAKERS[request.param](folder), "evaluate.inception_weights": str(inception_file)}


SMALL = {
    "plan.num_calibration_images": 2, "plan.timestep_stride": 250, "plan.batch_size": 2,
    "finetune.steps": 2, "finetune.batch_size": 2, "finetune.num_workers": 0,
    "sample.num": 3, "sample.steps": 2, "sample.batch_size": 3, "evaluate.num_workers": 0,
    **{f"{section}.device": "cpu" for section in ("plan", "finetune", "sample", "evaluate")},
}  # fmt: skip


def words(experiment: Experiment, out: Path, **changes: object) -> list[str]:
    name, local = experiment
    sets = [f"{option}={value}" for option, value in {**SMALL, **local, **changes}.items()]
    return ["run", name, "--out", str(out), "--set", *sets]


def test_every_published_recipe_passes_a_dry_run_with_local_paths(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, local = tmp_path / "out", experiment[1]
    capsys.readouterr()
    assert main([*words(experiment, out), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["stage"]: row for row in told["steps"]}
    assert [row["stage"] for row in told["steps"]] == [
        "stats",
        "plan",
        "prune",
        "finetune",
        *["sample"] * 3,
        "evaluate",
    ]
    assert told["downloads"] == []
    assert told["params_after"] < told["params_before"]
    assert told["macs_after"] < told["macs_before"]
    weights, statistics = local["evaluate.inception_weights"], str(out / "reference.npz")
    assert (rows["stats"]["reads"], rows["stats"]["writes"]) == (f"{local['data']}, {weights}", statistics)
    calibrated = "generated" if experiment[0] == "ldm-imagenet" else local["data"]
    assert rows["plan"]["reads"] == f"{local['model']}, {calibrated}"
    assert rows["sample"]["reads"] == str(out / "recovered")
    assert rows["evaluate"]["reads"] == f"{out / 'samples'}, {statistics}, {weights}"
    assert told["estimated_total_s"] > 0
    assert not out.exists()


def test_every_recipe_is_tried_somewhere() -> None:
    of_digits = {"digits", "digit-classifier", "demo"}
    assert shipped_recipes().keys() == {*MAKERS, *of_digits}


def test_a_dry_run_names_the_model_and_the_network_that_would_be_downloaded(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    changes = ["--set", f"data={image_folder}", "plan.num_calibration_images=12"]
    run("run", "cifar10", "--out", tmp_path / "out", "--dry-run", "--json", *changes)
    assert json.loads(capsys.readouterr().out)["downloads"] == ["google/ddpm-cifar10-32", URL]


def test_every_mistake_of_a_published_recipe_is_told_before_any_work(
    pipeline_folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, statistics = tmp_path / "weights.pth", tmp_path / "other.npz"
    torch.save({"conv": torch.zeros(1)}, weights)
    statistics.write_bytes(b"nothing")
    changes = [
        f"model={pipeline_folder}", f"data={tmp_path / 'nowhere'}", f"plan.data={image_folder}", "plan.preset=model",
        "finetune.accumulation_steps=3", "sample.steps=21", "sample.num=20", "evaluate.num=30",
        f"evaluate.inception_weights={weights}", "evaluate.metrics=[fid, kid]", f"reference={statistics}",
    ]  # fmt: skip
    for more in (["--dry-run"], []):
        assert main(["run", "cifar10", "--out", str(tmp_path / "out"), "--set", *changes, *more]) == 2
        message = capsys.readouterr().err
        for expected in (
            f"plan: {image_folder} holds 12 images, but calibration needs 128; "
            "give more images or set num_calibration_images to at most 12",
            "finetune: no images at",
            "finetune: batch_size: got 128, which does not divide",
            "sample: steps: got 21, the model has 20 timesteps",
            "evaluate: num: got 30, but the sample section draws 20 images; set at most 20",
            "kid needs at least 1000",
            "other.npz cannot be read as statistics",
            f"{weights} does not hold the weights of inception",
        ):
            assert expected in message
        assert not (tmp_path / "out").exists()


def figures(out: Path) -> dict[str, dict[str, float]]:
    """Model -> its numbers, as run.json holds them."""
    found: dict[str, dict[str, float]] = {}
    for samples in sorted((out / "samples").iterdir()):
        places = [samples, *sorted((out / "metrics" / samples.name).iterdir())]
        found[samples.name] = {k: v for place in places for k, v in read_json(place / "run.json")["result"].items()}
    return found


@pytest.mark.slow
def test_every_published_recipe_runs_small(experiment: Experiment, tmp_path: Path) -> None:
    run(*words(experiment, tmp_path / "out"))
    found = figures(tmp_path / "out")
    assert list(found) == ["original", "pruned", "recovered"]
    for row in found.values():
        assert {"fid", "ssim", "mse", "params", "macs"} <= row.keys()
    assert found["original"]["ssim"] == pytest.approx(1, abs=1e-6)
    assert all(row["macs"] < found["original"]["macs"] for name, row in found.items() if name != "original")
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(title in page for title in ("<th>FID</th>", "<th>SSIM</th>", "parameters", "MACs"))


def pixels(folder: Path) -> torch.Tensor:
    return torch.stack([pil_to_tensor(Image.open(path)) for path in sorted(folder.glob("*.png"))]).int()


@pytest.mark.slow
def test_cifar10_goes_from_archive_and_checkpoint_to_one_report_by_one_process_or_two(
    inception_file: Path, tmp_path: Path
) -> None:
    local, statistics = cifar10(tmp_path), tmp_path / "cifar10.npz"
    run("stats", local["data"], "--inception-weights", inception_file, "--device", "cpu", "--out", statistics)
    experiment = "cifar10", {**local, "evaluate.inception_weights": str(inception_file), "reference": str(statistics)}
    changes = {"finetune.steps": 4, "finetune.batch_size": 4, "sample.num": 5, "sample.steps": 4}

    # dropout is drawn per part of a batch: two parts, one after the other or at the same time
    run(*words(experiment, tmp_path / "one", **changes, **{"finetune.accumulation_steps": 2}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run(
        [*launch, "-m", "--", "diffprune", *words(experiment, tmp_path / "two", **changes)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr

    one, other = figures(tmp_path / "one"), figures(tmp_path / "two")
    for model, row in one.items():
        ours, theirs = (pixels(tmp_path / place / "samples" / model) for place in ("one", "two"))
        assert len(ours) == 5
        assert (ours - theirs).abs().max() <= 1
        assert {"fid", "ssim", "params", "macs"} <= row.keys()
        for name in ("fid", "ssim", "mse"):
            assert other[model][name] == pytest.approx(row[name], rel=1e-3, abs=1e-5)
        assert all(other[model][name] == row[name] for name in ("params", "macs"))
    plans = [read_json(tmp_path / place / "plan" / "plan.json")["groups"] for place in ("one", "two")]
    assert plans[0] == plans[1]
    assert (tmp_path / "two" / "report.html").exists()
    assert not (tmp_path / "one" / "reference.npz").exists()  # the statistics given served all models


@pytest.mark.slow
@pytest.mark.usefixtures("quick_network")
def test_cifar10_goes_from_archive_and_checkpoint_to_a_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*words(("cifar10", cifar10(tmp_path)), out))
    found = figures(out)
    assert all({"fid", "ssim", "params", "macs"} <= row.keys() for row in found.values())
    assert found["recovered"]["params"] < found["original"]["params"]
    page = (out / "report.html").read_text()
    assert all(title in page for title in ("<th>FID</th>", "<th>SSIM</th>", "<th>parameters</th>", "<th>MACs</th>"))
    before = (out / "reference.npz").stat().st_mtime_ns
    run(*words(("cifar10", {"model": str(tmp_path / "model"), "data": str(tmp_path / "data")}), out))
    assert (out / "reference.npz").stat().st_mtime_ns == before
