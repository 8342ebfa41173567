"""Weights of the metric networks: download with a checksum, read without executing pickles, hash the values."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffprune.errors import ModelError
from diffprune.runs.download import Checksum, download


def fetch_weights(url: str, sha256: str, *, remedy: str) -> Path:
    """Return the file of a URL in torch's hub folder; download it when it is missing.

    sha256: checksum of the file, or its first digits; it is also checked for a file that exists. remedy: end of the
    error message, for users without network access. Raises ModelError.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    checksum = Checksum("sha256", sha256)
    if not path.is_file():
        download(url, path, checksum, error=ModelError, remedy=remedy)
    elif mismatch := checksum.mismatch(path):
        raise ModelError(f"{path} {mismatch}; remove it to download it again")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` file, or from a file of torch with `weights_only=True`.

    Raises ModelError when the file is missing, damaged, not a flat state dict, or would execute code.
    """
    if not path.is_file():
        raise ModelError(f"no file {path}; expected weights, as .pth or .safetensors")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot read {path} as weights: {first}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (names and tensors); expected the weights of one network")
    return {str(name): value for name, value in state.items()}


def hash_of_weights(state: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over names, shapes and float32 values; file formats do not matter.

    Counters (`num_batches_tracked`) are not hashed: some files do not have them.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        values = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def explain_mismatch(source: str, expected: str) -> Iterator[None]:
    """Raise ModelError with the first mismatch when `load_state_dict` fails on the weights of `source`."""
    try:
        yield
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"{source} does not hold {expected}: {reasons[min(1, len(reasons) - 1)][:200]}") from error


def _torch_load(path: Path) -> object:
    loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
