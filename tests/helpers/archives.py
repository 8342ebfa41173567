"""Archives in the formats in which the data sets are published, made small."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def noise(num: int, height: int = 32, width: int = 32, *, seed: int = 0) -> Pixels:
    """RGB noise, (num, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def cifar_batch(pixels: Pixels, labels_key: bytes = b"labels") -> bytes:
    """A batch as Python 2 and numpy 1 pickled it for the official archives: protocol 2, `str` for bytes."""
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    labels = b"".join(b"K" + bytes([i % 10]) for i in range(len(rows)))
    return (
        b"\x80\x02}(" + _text(b"data") + _array(rows)
        + _text(labels_key) + b"](" + labels + b"e"
        + _text(b"batch_label") + _text(b"training batch 1 of 5")
        + _text(b"filenames") + b"](" + b"".join(_text(b"leptodactylus_pentadactylus_s.png") for _ in rows) + b"e"
        + b"u."
    )  # fmt: skip


def _text(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _array(rows: Pixels) -> bytes:
    raw = rows.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape)
    minus_one = b"J\xff\xff\xff\xff"
    kind = b"cnumpy\ndtype\n" + _text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + _text(b"|") + b"NNN" + minus_one + minus_one + b"K\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _text(b"b") + b"\x87R"
    return made + b"(K\x01" + shape + b"\x86" + kind + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_cifar10(path: Path, train: Pixels, test: Pixels) -> Path:
    """cifar-10-python.tar.gz: five training batches, one test batch, in another order than the images'."""
    batches = {f"data_batch_{i + 1}": part for i, part in enumerate(np.array_split(train, 5))}
    members = {f"cifar-10-batches-py/{name}": cifar_batch(part) for name, part in reversed(batches.items())}
    return write_tar(path, {**members, "cifar-10-batches-py/test_batch": cifar_batch(test)})


def write_cifar100(path: Path, train: Pixels, test: Pixels) -> Path:
    """cifar-100-python.tar.gz."""
    parts = {"train": train, "test": test}
    return write_tar(path, {f"cifar-100-python/{k}": cifar_batch(v, b"fine_labels") for k, v in parts.items()})


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_lmdb(folder: Path, entries: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 24) as opened, opened.begin(write=True) as writing:
        for key, value in entries.items():
            writing.put(key, value)
    return folder
