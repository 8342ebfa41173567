"""`diffprune data`: published data sets from archives in their real formats."""

import hashlib
import io
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from diffprune.cli.main import main
from diffprune.data.images import open_images
from diffprune.data.presets import PRESETS
from diffprune.errors import DataError
from diffprune.runs.download import Checksum, download
from tests.helpers.archives import (
    cifar_batch,
    encoded,
    noise,
    write_cifar10,
    write_cifar100,
    write_lmdb,
    write_tar,
    write_zip,
)

TRAIN, TEST = noise(10), noise(3, seed=1)
FACES = noise(4, 218, 178)
ROOMS = noise(5, 24, 40)

Make = Callable[..., dict[str, object]]


@pytest.fixture
def make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Make:
    """Run `diffprune data`; returns its JSON."""

    def run(*words: object) -> dict[str, object]:
        capsys.readouterr()
        status = main(["data", *map(str, words), "--out", str(tmp_path / "out"), "--json"])
        assert status == 0, capsys.readouterr().err
        result: dict[str, object] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `diffprune data`, which must fail and leave nothing; returns its message."""

    def run(*words: object, status: int = 1) -> str:
        assert main(["data", *map(str, words), "--out", str(tmp_path / "out")]) == status
        assert not (tmp_path / "out").exists()
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return run


def pixels_of(folder: Path) -> list[np.ndarray]:
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".webp"))
    return [np.asarray(Image.open(path)) for path in images]


def as_tensor(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


# CIFAR


@pytest.mark.parametrize(("name", "write"), [("cifar10", write_cifar10), ("cifar100", write_cifar100)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_is_numbered_in_the_order_of_its_batches(
    name: str, write: Callable[..., Path], split: str, make: Make, tmp_path: Path
) -> None:
    archive = write(tmp_path / "cifar.tar.gz", TRAIN, TEST)
    expected = TRAIN if split == "train" else TEST
    assert make(name, "--archive", archive, "--md5", "none", "--split", split)["num_images"] == len(expected)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == [
        f"{i:05d}.png" for i in range(len(expected))
    ]
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)


def test_the_published_md5_is_asked_for_unless_told_otherwise(
    refused: Callable[..., str], make: Make, tmp_path: Path
) -> None:
    archive = write_cifar10(tmp_path / "cifar.tar.gz", TRAIN, TEST)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    message = refused("cifar10", "--archive", archive)
    assert f"has MD5 {md5}, expected c58f30108f718f92721af3b95e74349a" in message
    assert make("cifar10", "--archive", archive, "--md5", md5)["num_images"] == 10


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_malicious_archive_executes_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    evil = {
        "another global": pickle.dumps({b"data": Trap(tmp_path / "sprung")}, protocol=2),
        "os.system": b"cposix\nsystem\n(Vtouch " + str(tmp_path / "sprung").encode() + b"\ntR.",
        "a class in place of its instance": b"\x80\x02}cnumpy\nndarray\n}U\x08__init__U\x01xsbs.",
        "an absurd shape": cifar_batch(TEST).replace(b"J\x03\x00\x00\x00", b"J\xff\xff\xff\x7f"),
        "an array of objects": cifar_batch(TEST).replace(b"U\x02u1", b"U\x02O8"),
        "no dict": pickle.dumps([1], protocol=2),
        "no end": cifar_batch(TEST)[:-50],
    }
    for case, content in evil.items():
        archive = write_tar(tmp_path / "evil.tar.gz", {"cifar-100-python/train": content})
        message = refused("cifar100", "--archive", archive, "--md5", "none")
        assert "cifar-100-python/train" in message, case
        assert "is not as expected" in message, case
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_or_other_archive_is_told_as_such(refused: Callable[..., str], tmp_path: Path) -> None:
    archive = write_cifar10(tmp_path / "cifar.tar.gz", TRAIN, TEST)
    assert "has no cifar-100-python/train" in refused("cifar100", "--archive", archive, "--md5", "none")
    archive.write_bytes(archive.read_bytes()[:-5000])
    assert "is not a complete tar.gz" in refused("cifar10", "--archive", archive, "--md5", "none")


# images and their storage


def test_a_parquet_result_holds_the_same_images_as_a_folder(make: Make, tmp_path: Path) -> None:
    archive = write_cifar10(tmp_path / "cifar.tar.gz", TRAIN, TEST)
    make("cifar10", "--archive", archive, "--md5", "none", "--format", "parquet")
    images = open_images(tmp_path / "out", (32, 32), 3)
    assert len(images) == 10
    for image, expected in zip(images, TRAIN, strict=False):
        assert np.allclose(image, as_tensor(expected), atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images-00000.parquet", "run.json"]


def faces(tmp_path: Path, *, corrupt: bool = False) -> Path:
    members = {f"img_align_celeba/{i + 1:06d}.jpg": encoded(face, "JPEG") for i, face in enumerate(FACES)}
    if corrupt:
        members["img_align_celeba/000002.jpg"] = members["img_align_celeba/000002.jpg"][:2000]
    return write_zip(tmp_path / "img_align_celeba.zip", {"__MACOSX/._000001.jpg": b"", **members})


def test_celeba_keeps_its_files_or_is_prepared_by_the_preset(make: Make, tmp_path: Path) -> None:
    archive = faces(tmp_path)
    make("celeba", "--archive", archive, "--md5", "none")
    assert (tmp_path / "out" / "000003.jpg").read_bytes() == encoded(FACES[2], "JPEG")
    result = make("celeba", "--archive", archive, "--md5", "none", "--preset", "celeba64", "--overwrite")
    assert result["preprocessing"] == PRESETS["celeba64"].resolved()
    decoded = Image.open(io.BytesIO(encoded(FACES[2], "JPEG")))
    assert np.array_equal(pixels_of(tmp_path / "out")[2], np.asarray(PRESETS["celeba64"](decoded)))


def test_prepared_and_original_images_are_the_same_to_a_model(make: Make, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for i, face in enumerate(FACES):
        Image.fromarray(face).save(tmp_path / "faces" / f"{i}.png")
    make("celeba", "--archive", tmp_path / "faces", "--preset", "celeba64")
    original, prepared = (open_images(tmp_path / f, PRESETS["celeba64"], 3) for f in ("faces", "out"))
    assert all(np.array_equal(one, other) for one, other in zip(original, prepared, strict=True))


@pytest.mark.parametrize("storage", ["folder", "parquet"])
def test_a_corrupt_image_is_named_and_fatal_or_left_out(
    storage: str, make: Make, refused: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("celeba", "--archive", faces(tmp_path, corrupt=True), "--md5", "none", "--format", storage)
    if storage == "parquet":
        assert "000002.jpg is not a readable image" in refused(*words)
    result = make(*words, "--on-corrupt", "skip", "--overwrite")
    assert (result["num_images"], result["num_corrupt"]) == (3, 1)
    assert "000002.jpg is not a readable image" in caplog.text
    assert list(json.loads((tmp_path / "out" / "corrupt.json").read_text())) == ["000002.jpg"]
    assert len(open_images(tmp_path / "out", (64, 64), 3)) == 3


def test_an_image_that_does_not_suit_the_preset_is_fatal_even_where_corrupt_ones_are_not(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    archive = write_zip(tmp_path / "faces.zip", {"a.png": encoded(ROOMS[0])})
    words = ("celeba", "--archive", archive, "--md5", "none", "--preset", "celeba64", "--on-corrupt", "skip")
    assert "a.png has 24x40 pixels" in refused(*words)


def test_worker_processes_write_the_same(make: Make, tmp_path: Path) -> None:
    archive = faces(tmp_path)
    words = ("celeba", "--archive", archive, "--md5", "none", "--preset", "celeba64")
    make(*words)
    alone = pixels_of(tmp_path / "out")
    make(*words, "--num-workers", 2, "--overwrite")
    assert np.array_equal(alone, pixels_of(tmp_path / "out"))


def test_an_interrupted_run_goes_on_where_it_stopped(make: Make, tmp_path: Path) -> None:
    words = ("celeba", "--archive", faces(tmp_path), "--md5", "none")
    make(*words)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (tmp_path / "out" / "000001.jpg").unlink()
    (tmp_path / "out" / "000002.jpg").write_bytes(b"")  # what a power failure can leave
    before = (tmp_path / "out" / "000003.jpg").stat().st_mtime_ns
    assert make(*words)["num_images"] == 4
    assert (tmp_path / "out" / "000003.jpg").stat().st_mtime_ns == before
    assert np.array_equal(pixels_of(tmp_path / "out")[1], Image.open(io.BytesIO(encoded(FACES[1], "JPEG"))))


# LSUN and FFHQ


def rooms(folder: Path) -> Path:
    keys = [hashlib.sha1(bytes([i])).hexdigest().encode() for i in range(len(ROOMS))]
    return write_lmdb(folder, dict(zip(keys, (encoded(room, "WEBP") for room in ROOMS), strict=True)))


def in_order_of_keys() -> list[np.ndarray]:
    keys = [hashlib.sha1(bytes([i])).hexdigest() for i in range(len(ROOMS))]
    return [ROOMS[i] for i in sorted(range(len(ROOMS)), key=keys.__getitem__)]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_lsun_is_read_in_the_order_of_its_keys(kind: str, make: Make, tmp_path: Path) -> None:
    source = rooms(tmp_path / "church_outdoor_train_lmdb")
    if kind == "zip":
        members = {f"{source.name}/{name}": (source / name).read_bytes() for name in ("data.mdb", "lock.mdb")}
        source = write_zip(tmp_path / "church.zip", members)
    assert make("lsun-church", "--archive", source)["num_images"] == 5
    assert np.array_equal(pixels_of(tmp_path / "out"), in_order_of_keys())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000", "run.json"]
    assert (tmp_path / "out" / "0000" / "0000004.webp").exists()


def test_a_database_that_is_cut_short_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    source = rooms(tmp_path / "lmdb")
    os.truncate(source / "data.mdb", 12_288)
    assert "is truncated" in refused("lsun-bedroom", "--archive", source)
    (source / "data.mdb").write_bytes(b"not a database" * 1000)
    assert "is not a complete lmdb" in refused("lsun-bedroom", "--archive", source)


def test_ffhq_is_read_at_one_resolution(make: Make, refused: Callable[..., str], tmp_path: Path) -> None:
    small, large = noise(3, 128, 128), noise(3, 256, 256)
    entries = {f"{len(p)}-{i:05d}".encode(): encoded(p) for ps in (small, large) for i, p in enumerate(ps)}
    source = write_lmdb(tmp_path / "ffhq", {**entries, b"length": b"3"})
    message = refused("ffhq", "--archive", source, "--resolution", 64)
    assert "no images of resolution 64; it has 128, 256" in message
    make("ffhq", "--archive", source, "--resolution", 128)
    assert np.array_equal(pixels_of(tmp_path / "out"), small)
    make("ffhq", "--archive", source, "--overwrite")
    assert np.array_equal(pixels_of(tmp_path / "out"), large)
    assert (tmp_path / "out" / "00002.png").exists()


def test_a_missing_lmdb_package_says_what_to_install(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rooms(tmp_path / "lmdb")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "pip install 'diffprune[lsun]'" in refused("lsun-church", "--archive", source)


# wrong input


def test_wrong_names_and_options_are_told_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "did you mean 'cifar10'?" in refused("cifar-10", status=2)
    message = refused("celeba", "--split", "test", "--resolution", 64, status=2)
    for expected in ("split: applies only to cifar10", "resolution: applies only to ffhq", "archive: missing"):
        assert expected in message
    (tmp_path / "empty").mkdir()
    assert "md5: applies to a file" in refused("ffhq", "--archive", tmp_path / "empty", "--md5", "0" * 32, status=2)
    assert "md5: got 'abc'" in refused("cifar10", "--md5", "abc", status=2)
    assert "does not exist" in refused("cifar10", "--archive", tmp_path / "nowhere")
    assert "has no images" in refused("celeba", "--archive", tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("not an archive")
    assert "neither a folder nor a complete zip" in refused("lsun-church", "--archive", tmp_path / "notes.txt")


def test_images_of_one_name_in_two_folders_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "faces.zip", {"a/1.png": encoded(ROOMS[0]), "b/1.png": encoded(ROOMS[1])})
    assert "several images named 1.png" in refused("celeba", "--archive", archive, "--md5", "none")


# downloads


class Server(BaseHTTPRequestHandler):
    """Serves one file with ranges, and breaks off the first answer after `cut` bytes."""

    content: ClassVar[bytes] = b""
    cut: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if self.path != "/archive.tar.gz":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(self.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        end = len(self.content) if Server.cut is None else Server.cut
        Server.cut = None
        self.wfile.write(self.content[start:end])

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a local server of `Server.content`."""
    Server.content, Server.cut, Server.ranges, Server.asked = b"", None, True, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/archive.tar.gz"
        running.shutdown()
        thread.join()


def test_a_data_set_is_downloaded_checked_and_made(server: str, make: Make, tmp_path: Path) -> None:
    Server.content = write_cifar10(tmp_path / "cifar.tar.gz", TRAIN, TEST).read_bytes()
    md5 = hashlib.md5(Server.content).hexdigest()
    assert make("cifar10", "--archive", server, "--md5", md5)["num_images"] == 10
    assert not (tmp_path / "out" / "download").exists()
    make("cifar10", "--archive", server, "--md5", md5)
    assert len(Server.asked) == 1  # a finished result is kept


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_download_that_broke_off_goes_on(ranges: bool, server: str, make: Make, tmp_path: Path) -> None:
    Server.content = write_cifar10(tmp_path / "cifar.tar.gz", TRAIN, TEST).read_bytes()
    Server.cut, Server.ranges = 5000, ranges
    words = ["data", "cifar10", "--archive", server, "--md5", "none", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert (tmp_path / "out" / "download" / "archive.tar.gz.part").stat().st_size == 5000
    assert make(*words[1:-2])["num_images"] == 10
    assert Server.asked == [None, "bytes=5000-"]


def test_a_download_that_was_whole_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    Server.content = b"x" * 100
    (tmp_path / "file.part").write_bytes(Server.content)
    download(server, tmp_path / "file", None, remedy="Try again")
    assert (tmp_path / "file").read_bytes() == Server.content
    (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(b"y" * 200)  # more than there is: another file
    download(server, tmp_path / "file", None, remedy="Try again")
    assert (tmp_path / "file").read_bytes() == Server.content


def test_a_download_of_another_file_is_thrown_away(server: str, tmp_path: Path) -> None:
    Server.content = b"another file"
    with pytest.raises(DataError, match="expected 0000"):
        download(server, tmp_path / "file", Checksum("md5", "0" * 32), remedy="Try again")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_fails_is_told_as_such(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the server returned 404"):
        download(server.replace("archive", "nothing"), tmp_path / "file", None, remedy="Try again")
    with pytest.raises(DataError, match="cannot download"):
        download("http://127.0.0.1:9/file", tmp_path / "file", None, remedy="Try again")
