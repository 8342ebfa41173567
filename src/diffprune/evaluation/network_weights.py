"""Weights of the networks that judge images: fetched with a checksum, read without executing anything, hashed."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffprune.errors import ModelError

_CHUNK = 1 << 20


def fetch_weights(url: str, sha256: str, *, remedy: str) -> Path:
    """The file behind a URL, from torch's hub folder or downloaded into it.

    sha256: the file's checksum, or as many of its first digits as are published; it is checked in both cases.
    remedy: what the user can do without the network. Raises ModelError.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        found = _sha256_of(path)
        if not found.startswith(sha256):
            raise ModelError(f"{path} has SHA-256 {found}, expected {sha256}; remove it to download it again")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise ModelError(f"cannot fetch {url} (SHA-256 {sha256}) to {path}: {error}; {remedy}") from error
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file, or from any file of torch's read with `weights_only`.

    Raises ModelError when the file is missing, damaged, not a flat state dict, or would execute something.
    """
    if not path.is_file():
        raise ModelError(f"no file {path}; expected weights, as .pth or .safetensors")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as weights alone: {first}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (names and tensors); expected the weights of one network")
    return {str(name): value for name, value in state.items()}


def hash_of(state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over names, shapes and float32 values, whatever file they came from.

    Counters (`num_batches_tracked`) do not count: files differ in whether they hold them.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        values = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def must_fit(what: str, expected: str) -> Iterator[None]:
    """Turn a failing `load_state_dict` of the weights `what` into a ModelError that says what does not fit."""
    try:
        yield
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"{what} does not hold {expected}: {reasons[min(1, len(reasons) - 1)][:200]}") from error


def _torch_load(path: Path) -> object:
    loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
