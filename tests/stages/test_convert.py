"""`diffprune convert`: files and addresses into folders that load, and every mistake told before anything is left."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from safetensors.torch import save_file

import diffprune
from diffprune.cli.main import main
from diffprune.conversion.ddpm import research_names
from diffprune.errors import ModelError
from tests.conftest import tiny_unet

RESEARCH = {
    "in_channels": 3,
    "out_channels": 3,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
}
"""What makes the tiny denoiser one of the research format."""


@cache
def research_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under research names; what they compute is tested beside the format."""
    generator = torch.Generator().manual_seed(seed)
    stock = tiny_unet(**RESEARCH)
    names = research_names(stock)
    shapes = {
        names[ours]: (*tensor.shape, 1, 1) if "attentions" in ours and tensor.dim() == 2 else tensor.shape
        for ours, tensor in stock.state_dict().items()
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def arch(tmp_path: Path) -> Path:
    tiny_unet(**RESEARCH).save_config(tmp_path / "arch")
    return tmp_path / "arch" / "config.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A research list: raw weights as of data parallel training, and the EMA by bare names."""
    raw = {f"module.{name}": tensor for name, tensor in research_weights(1).items()}
    torch.save([raw, {"lr": 1e-4}, 7, 1000, research_weights(0)], tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def loaded_bias(folder: Path) -> torch.Tensor:
    found: torch.Tensor = DiffusionPipeline.from_pretrained(folder, use_safetensors=True).unet.conv_in.bias
    return found.detach()


def test_a_research_checkpoint_becomes_a_folder_that_diffusers_loads(
    checkpoint: Path, arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", "ddpm", checkpoint, "--arch", arch, "--out"]
    facts = answer(capsys, *words, tmp_path / "ema")
    assert (facts["weights"], facts["pipeline"], facts["notes"]) == ("ema", "DDPMPipeline", [])
    assert facts["params"] == sum(tensor.numel() for tensor in research_weights().values())
    assert facts["macs"] > 0
    assert answer(capsys, *words, tmp_path / "raw", "--weights", "raw")["weights"] == "raw"
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path / "ema"), DDPMPipeline)
    assert torch.equal(loaded_bias(tmp_path / "ema"), research_weights(0)["conv_in.bias"])
    assert torch.equal(loaded_bias(tmp_path / "raw"), research_weights(1)["conv_in.bias"])
    record = json.loads((tmp_path / "ema" / "run.json").read_text())
    assert record["options"]["format"] == "ddpm"
    assert record["inputs"]["file"]["identity"] == sha256(checkpoint)[:16]
    assert "license" in (tmp_path / "ema" / "README.md").read_text()


def test_pruned_weights_of_someone_else_become_our_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock = tiny_unet()
    small = diffprune.prune(stock, diffprune.plan(stock, criterion="magnitude", ratio=0.5))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    stock.save_config(tmp_path / "stock")
    words = ["convert", "shapes", tmp_path / "small.safetensors", "--arch", tmp_path / "stock" / "config.json"]
    facts = answer(capsys, *words, "--out", tmp_path / "out")
    assert (facts["pruned"], facts["pipeline"]) == (True, None)
    assert facts["params"] < facts["params_stock"]
    noisy = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    again = diffprune.UNet2DModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(noisy, 5).sample, small(noisy, 5).sample)
    assert answer(capsys, "inspect", tmp_path / "out", "--no-latency")["pruned"] is True


def test_pruned_weights_of_a_published_architecture_get_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published widths are too many for a test: a narrow config stands under the published name."""
    from diffprune.pipelines import architecture_configs, builtin

    stock = tiny_unet(**RESEARCH)
    narrow = {**builtin.ARCHITECTURES, "ddpm-cifar10": {**stock.config, "_class_name": "UNet2DModel"}}
    monkeypatch.setattr(architecture_configs, "ARCHITECTURES", narrow)
    torch.save(stock.state_dict(), tmp_path / "model.pth")
    pipeline = diffprune.convert("shapes", tmp_path / "model.pth", arch="ddpm-cifar10")
    assert isinstance(pipeline, DDPMPipeline)
    assert pipeline.scheduler.config.variance_type == "fixed_large"


def test_what_a_checkpoint_asks_for_beside_weights_is_told(
    arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"state_dict": research_weights(), "optimizer": Path("somewhere")}
    torch.save(content, tmp_path / "model.ckpt")
    facts = answer(capsys, "convert", "ddpm", tmp_path / "model.ckpt", "--arch", arch, "--out", tmp_path / "out")
    assert facts["weights"] == "stored"
    assert facts["notes"] == [
        f"not read, because that would execute code: {type(Path()).__module__}.{type(Path()).__name__}"
    ]


# addresses


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/short/"):  # promises more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            return
        super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the test's folder; nothing outside this machine is asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_an_address_is_downloaded_and_checked(
    server: str, checkpoint: Path, arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--arch", arch, "--sha256", sha256(checkpoint).upper(), "--out", tmp_path / "out"]
    facts = answer(capsys, "convert", "ddpm", f"{server}/model.ckpt", *words)
    assert facts["weights"] == "ema"
    assert torch.equal(loaded_bias(tmp_path / "out"), research_weights(0)["conv_in.bias"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "model_index.json", "run.json", "scheduler", "unet"}
    (tmp_path / "model.ckpt").unlink()
    assert answer(capsys, "convert", "ddpm", f"{server}/model.ckpt", *words) == facts  # finished before: not fetched


# mistakes


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: object, status: int = 1) -> str:
    """The message of a conversion that must fail, after a check that nothing was written."""
    capsys.readouterr()
    before = contents(tmp_path)
    assert main(["convert", *map(str, words), "--out", str(tmp_path / "out")]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert contents(tmp_path) == before
    return printed.err


USAGE: dict[str, tuple[list[str], str]] = {
    "an unknown format": (["ddmp", "x"], "expected one of ddpm, ldm, shapes; did you mean 'ddpm'?"),
    "ldm without an architecture": (["ldm", "x"], "arch: missing; format ldm needs celebahq-256, cin256-v2"),
    "shapes without an architecture": (["shapes", "x"], "arch: missing; format shapes needs the unpruned MODEL"),
    "heads of another format": (["ddpm", "x", "--heads", "2"], "heads: belongs to format shapes"),
    "no heads": (["shapes", "x", "--arch", "y", "--heads", "0"], "heads: got '0'"),
    "other weights": (["ddpm", "x", "--weights", "emma"], "weights: got 'emma', expected one of ema, raw"),
    "half a checksum": (["ddpm", "x", "--sha256", "abc"], "sha256: got 'abc'"),
    "an address without checksum": (["ddpm", "https://example.org/model.ckpt"], "sha256: missing"),
    "an address that is not served": (["ddpm", "ftp://example.org/model.ckpt"], "expected an http or https URL"),
    "two at once": (["ldm", "ftp://x/y", "--heads", "2"], "arch: missing"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = USAGE[case]
    message = refused(capsys, tmp_path, *words, status=2)
    assert expected in message
    if case == "two at once":
        assert "heads: belongs" in message
        assert "http or https" in message


def test_files_that_do_not_serve_are_refused(
    checkpoint: Path, arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no weights here")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save({"conv_in.bias": torch.zeros(16)}, tmp_path / "part.pt")
    (tmp_path / "short.ckpt").write_bytes(checkpoint.read_bytes()[:9000])
    for words, expected in (
        (["ddpm", tmp_path / "nowhere.ckpt"], "no file"),
        (["ddpm", tmp_path], "no file"),
        (["ddpm", tmp_path / "notes.txt"], "as a checkpoint"),
        (["ddpm", tmp_path / "empty.pt"], "expected a state dict"),
        (["ddpm", tmp_path / "part.pt", "--arch", arch], "missing: conv_in.weight"),
        (["ddpm", tmp_path / "short.ckpt"], "damaged or truncated"),
        (["ddpm", checkpoint], "fit none of the published architectures"),
        (["ddpm", checkpoint, "--arch", "ddpm-celeba64"], "the weights are not those of ddpm-celeba64: "),
        (["ddpm", checkpoint, "--arch", "ddpm-celeba46"], "no architecture 'ddpm-celeba46'"),
        (["ldm", checkpoint, "--arch", "cin256-v2"], "not a latent-diffusion checkpoint of cin256-v2"),
        (["shapes", checkpoint, "--arch", arch], "not those of a smaller UNet2DModel"),
        (["ddpm", checkpoint, "--sha256", "0" * 64], f"has SHA-256 {sha256(checkpoint)}, expected 0000"),
    ):
        assert expected in refused(capsys, tmp_path, *words)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch sprung",)


def test_a_malicious_file_is_refused_unexecuted(
    arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save([research_weights(), Trap()], tmp_path / "model.ckpt")
    message = refused(capsys, tmp_path, "ddpm", tmp_path / "model.ckpt", "--arch", arch)
    assert "may be malicious" in message
    assert not (tmp_path / "sprung").exists()


def test_downloads_that_fail_leave_nothing(
    server: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for address, expected in (
        (f"{server}/nowhere.ckpt", "404"),
        (f"{server}/model.ckpt", "it is damaged, truncated or another file"),
        (f"{server}/short/model.ckpt", "the connection ended after 10 of "),
        ("http://127.0.0.1:9/model.ckpt", "cannot download"),
    ):
        assert expected in refused(capsys, tmp_path, "ddpm", address, "--sha256", "0" * 64)


def test_a_folder_that_is_not_ours_is_left_alone(
    checkpoint: Path, arch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("the only copy")
    words = ["ddpm", checkpoint, "--arch", arch]
    assert "was not made by" in refused(capsys, tmp_path, *words)
    assert "was not made by" in refused(capsys, tmp_path, *words, "--overwrite")


def test_the_python_api_refuses_the_same(checkpoint: Path) -> None:
    with pytest.raises(diffprune.OptionError, match="did you mean 'arch'"):
        diffprune.convert("ddpm", checkpoint, arhc="x")
    with pytest.raises(ModelError, match="fit none of the published"):
        diffprune.convert("ddpm", checkpoint)
