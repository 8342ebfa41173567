"""Whole files and folders, and the `run.json` that says how a folder came about."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffprune.errors import FolderError
from diffprune.runs.atomic_files import atomic_folder, atomic_write, read_json
from diffprune.runs.environment import peak_memory_mb
from diffprune.runs.run_record import run_record

OPTIONS = {"steps": 3}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "file", "before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(FolderError, match=r"No space left on device; free space"):
        atomic_write(tmp_path / "file", "after")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "above" / "folder") as beside:
        (beside / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_record_says_how_the_folder_came_about(tmp_path: Path) -> None:
    source = tmp_path / "plan.json"
    source.write_text("{}")
    with run_record(tmp_path / "out", "prune", OPTIONS, {"plan": str(source), "model": "owner/name"}) as run:
        run.result = {"params": 5}
    record = read_json(tmp_path / "out" / "run.json")
    assert (record["stage"], record["status"], record["options"]) == ("prune", "finished", OPTIONS)
    assert record["inputs"]["plan"]["identity"]
    assert record["inputs"]["model"] == {"source": "owner/name", "identity": None}
    assert record["result"] == {"params": 5}
    assert record["wall_time_s"] >= 0
    assert record["peak_memory_mb"] > 0
    assert {"python", "torch", "diffusers"} <= record["versions"].keys()


@pytest.mark.parametrize("resumable", [False, True])
def test_a_finished_result_is_kept(resumable: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for expected, notice in ((False, f"result written to {out}\n"), (True, f"{out} is finished; nothing to do\n")):
        with run_record(tmp_path / "out", "sample", OPTIONS, {}, resumable=resumable) as run:
            assert run.finished_before is expected
            if not expected:
                run.result = {"num": 1}
        assert run.result == {"num": 1}
        assert capsys.readouterr().err == notice


@pytest.mark.parametrize("resumable", [False, True])
def test_changed_inputs_are_noticed_by_content(resumable: bool, tmp_path: Path) -> None:
    source = tmp_path / "plan.json"
    for text in ("{}", "[]"):
        source.write_text(text)
        inputs = {"plan": str(source)}
        if text == "[]":
            with (
                pytest.raises(FolderError, match=r"plan: .* has changed since"),
                run_record(tmp_path / "out", "prune", OPTIONS, inputs, resumable=resumable),
            ):
                raise AssertionError("must not start")
        with run_record(tmp_path / "out", "prune", OPTIONS, inputs, resumable=resumable, existing="redo") as run:
            assert not run.finished_before


def test_an_interrupted_run_says_so_and_is_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), run_record(out, "sample", OPTIONS, {}, resumable=True):
        (out / "000000.png").write_text("kept")
        (out / ".000001.png.x1y2.part").write_text("what a killed process leaves")
        assert read_json(out / "run.json")["status"] == "running"
        raise RuntimeError
    assert read_json(out / "run.json")["status"] == "running"
    with run_record(out, "sample", OPTIONS, {}, resumable=True) as run:
        assert not run.finished_before
        assert (out / "000000.png").read_text() == "kept"
        assert sorted(p.name for p in out.iterdir()) == ["000000.png", "run.json"]
    assert read_json(out / "run.json")["status"] == "finished"


def test_a_run_that_fails_before_it_left_anything_leaves_nothing(tmp_path: Path) -> None:
    for resumable in (False, True):
        with pytest.raises(RuntimeError), run_record(tmp_path / "a" / "b", "x", OPTIONS, {}, resumable=resumable):
            raise RuntimeError
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "sample", "status": "finished"}', '{"stage": "plan"}'])
def test_a_damaged_record_is_not_taken_for_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with (
        pytest.raises(FolderError, match="was not made by"),
        run_record(tmp_path, "sample", OPTIONS, {}, existing="redo"),
    ):
        raise AssertionError("must not start")
    assert (tmp_path / "run.json").read_text() == text


def test_records_are_readable_json(tmp_path: Path) -> None:
    with run_record(tmp_path / "out", "sample", {"metrics": ("ssim",)}, {}):
        pass
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"] == {"metrics": ["ssim"]}


@pytest.mark.parametrize("resumable", [False, True])
def test_what_is_replaced_stays_until_the_new_result_is_there(resumable: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_record(out, "sample", OPTIONS, {}, resumable=resumable) as run:
        (run.folder / "result").write_text("first")
    before = read_json(out / "run.json")
    with pytest.raises(RuntimeError), run_record(out, "sample", {"steps": 4}, {}, existing="redo", resumable=resumable):
        raise RuntimeError
    assert read_json(out / "run.json") == before
    assert (out / "result").read_text() == "first"
    with run_record(out, "sample", {"steps": 4}, {}, existing="replace", resumable=resumable):
        pass
    assert [p.name for p in out.iterdir()] == ["run.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_redo_makes_a_finished_result_anew_and_replace_keeps_it(tmp_path: Path) -> None:
    for existing, kept in (("refuse", False), ("refuse", True), ("replace", True), ("redo", False)):
        with run_record(tmp_path / "out", "sample", OPTIONS, {}, existing=existing) as run:
            assert run.finished_before is kept


def test_options_that_do_not_change_the_result_may_differ(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        with run_record(tmp_path / "out", "x", {**OPTIONS, "device": device}, {}, neutral={"device"}) as run:
            assert run.finished_before is (device == "cuda")


def test_a_stage_cannot_write_over_its_own_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_record(out, "prune", OPTIONS, {}):
        pass
    for source in (out, out / "run.json"):
        with (
            pytest.raises(FolderError, match="is inside the output folder"),
            run_record(out, "prune", OPTIONS, {"model": str(source)}, existing="redo"),
        ):
            raise AssertionError("must not start")
    assert (out / "run.json").exists()


def test_a_changed_image_in_a_folder_of_data_is_noticed(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    (data / "a.png").write_text("1")
    with run_record(tmp_path / "out", "plan", OPTIONS, {"data": str(data)}):
        pass
    (data / "a.png").write_text("22")
    with (
        pytest.raises(FolderError, match="photos has changed since"),
        run_record(tmp_path / "out", "plan", OPTIONS, {"data": str(data)}),
    ):
        raise AssertionError("must not start")


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent() -> None:
    large = bytearray(200_000_000)
    words = [sys.executable, "-c", "from diffprune.runs.environment import peak_memory_mb; print(peak_memory_mb())"]
    child = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 5 < child < 200 <= peak_memory_mb()
    assert len(large) == 200_000_000
