"""Checkpoint files are read without executing anything, in every format, and what is damaged is told as such."""

import argparse
import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffprune.conversion.checkpoint_reader import read_checkpoint
from diffprune.errors import ModelError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def save(value: Any, path: Path, *, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


def same(read: Any) -> bool:
    return list(read) == list(TENSORS) and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


@FORMATS
def test_plain_weights_are_read(is_zip: bool, tmp_path: Path) -> None:
    read = read_checkpoint(save([TENSORS, {"lr": 0.1}, 3], tmp_path / "model.ckpt", is_zip=is_zip))
    assert same(read.content[0])
    assert read.content[1:] == [{"lr": 0.1}, 3]
    assert read.foreign == ()


@pytest.mark.parametrize("name", ["model.safetensors", "download"])
def test_safetensors_are_read_by_ending_or_by_content(name: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / name)
    assert same(read_checkpoint(tmp_path / name).content)


class Settings(dict):
    """As training frameworks keep their hyper-parameters: a dict of a class of their own."""


class Names(list):
    """A list of a class of its own."""


class Callback:
    def __init__(self) -> None:
        self.best = torch.ones(2)
        self.state = {"seen": 3}

    def __setstate__(self, state: object) -> None:
        raise AssertionError("the class of the file was used")


@FORMATS
def test_objects_of_foreign_classes_become_inert_and_the_weights_are_read(is_zip: bool, tmp_path: Path) -> None:
    content = {
        "state_dict": TENSORS,
        "callbacks": {Callback: Callback()},
        "hparams": Settings(rate=0.1, inner=Settings(x=1)),
        "names": Names(["a", "b"]),
        "args": argparse.Namespace(depth=2),
        "counts": collections.defaultdict(list, {"k": [1]}),
        "place": Path("here"),
    }
    allowed = set(torch.serialization.get_safe_globals())
    read = read_checkpoint(save(content, tmp_path / "model.ckpt", is_zip=is_zip))
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert same(read.content["state_dict"])
    assert dict(read.content["hparams"]) == {"rate": 0.1, "inner": {"x": 1}}
    assert read.content["names"] == ["a", "b"]
    assert not isinstance(read.content["args"], argparse.Namespace)
    assert vars(read.content["args"]) == {}
    assert "argparse.Namespace" in read.foreign
    assert f"{__name__}.Callback" in read.foreign


def test_classes_of_modules_that_are_not_installed_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("vanished_trainer")
    state = type("State", (), {"__module__": "vanished_trainer"})
    monkeypatch.setattr(module, "State", state, raising=False)
    monkeypatch.setitem(sys.modules, "vanished_trainer", module)
    path = save({"state_dict": TENSORS, "trainer": state()}, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, "vanished_trainer")
    assert read_checkpoint(path).foreign == ("vanished_trainer.State",)
    assert "vanished_trainer" not in sys.modules


class Malice:
    """Calls a function with arguments when it is unpickled by Python's own pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def calls(sprung: Path) -> dict[str, Malice]:
    code = f"open({str(sprung)!r}, 'w')"
    return {
        "os.system": Malice(os.system, f"touch {sprung}"),
        "eval": Malice(eval, code),
        "exec": Malice(exec, code),
        "open": Malice(open, str(sprung), "w"),
        "getattr of a builtin": Malice(getattr, Malice(__import__, "os"), "mkdir"),
        "subprocess": Malice(subprocess.check_call, ["touch", str(sprung)]),
        "a method": Malice(Path.touch, sprung),
        "pickle in pickle": Malice(pickle.loads, pickle.dumps(Malice(open, str(sprung), "w"))),
        "torch.load": Malice(torch.load, str(sprung), "cpu"),
    }


REFUSED = {"os.system": r"use (posix|nt)\.system", "a method": "call an object"}
"""Refused as a whole; from the other files the weights are read and the rest is left inert."""


@FORMATS
@pytest.mark.parametrize("case", calls(Path("x")))
def test_a_malicious_pickle_executes_nothing(case: str, is_zip: bool, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "model.ckpt"
    save({"state_dict": TENSORS, "payload": calls(sprung)[case]}, path, is_zip=is_zip)
    if case in REFUSED:
        with pytest.raises(ModelError, match=rf"model\.ckpt wants to {REFUSED[case]}.*nothing in it was executed"):
            read_checkpoint(path)
    else:
        read = read_checkpoint(path)
        assert same(read.content["state_dict"])
        assert read.foreign
    assert not sprung.exists()


def test_a_bare_malicious_pickle_executes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Malice(os.system, f"touch {tmp_path / 'sprung'}"), protocol=2))
    with pytest.raises(ModelError, match=r"wants to use (posix|nt).system, which no weights need"):
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_an_inert_object_cannot_be_called(tmp_path: Path) -> None:
    """getattr(Path("x"), "touch")() in opcodes: protocol 2, two globals, two calls, and a call of the outcome."""
    path = tmp_path / "model.pt"
    path.write_bytes(
        b"\x80\x02cbuiltins\ngetattr\ncpathlib\nPath\nX\x01\x00\x00\x00x\x85RX\x05\x00\x00\x00touch\x86R)R."
    )
    with pytest.raises(ModelError, match="wants to call an object"):
        read_checkpoint(path)


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"text")
    return file.getvalue()


NOT_CHECKPOINTS = {"text": b"not a checkpoint at all\n", "empty": b"", "zip of something": zipped("readme.txt")}


@pytest.mark.parametrize("case", NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(NOT_CHECKPOINTS[case])
    with pytest.raises(ModelError, match=r"model\.ckpt as a checkpoint(.|\n)*Expected a file written by torch.save"):
        read_checkpoint(tmp_path / "model.ckpt")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.95])
@FORMATS
def test_a_truncated_file_is_told_as_such(is_zip: bool, keep: float, tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "model.ckpt", is_zip=is_zip)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ModelError, match="damaged or truncated"):
        read_checkpoint(path)


def test_truncated_safetensors_and_missing_files_are_told_as_such(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ModelError, match="damaged or truncated"):
        read_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no file .*nowhere"):
        read_checkpoint(tmp_path / "nowhere")
