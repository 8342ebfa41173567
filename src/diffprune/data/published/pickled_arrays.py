"""Read arrays from pickles of Python 2 without running code: every global becomes an inert class."""

import io
import math
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprune.errors import DataError

Bytes = NDArray[np.uint8]


class _Array:
    """Stands for a numpy array of the pickle; it only stores the values."""

    def __init__(self, *arguments: object) -> None:
        self.values: Bytes | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, raw = state
        if not isinstance(kind, _Type) or kind.code not in (b"u1", "u1") or is_fortran:
            raise ValueError("an array that is not of unsigned bytes in C order")
        if not isinstance(raw, bytes) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array without a shape or values")
        if math.prod(shape) != len(raw):
            raise ValueError(f"an array of shape {shape} with {len(raw)} values")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _Type:
    """Stands for a numpy dtype of the pickle."""

    def __init__(self, code: object, *flags: object) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order, which single bytes do not have."""


_INERT = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _INERT[module, name]
        except KeyError:
            raise DataError(f"needs {module}.{name}, expected only numpy arrays; no code was run") from None


def read_array(pickled: bytes, key: str, what: str) -> Bytes:
    """Return the array of unsigned bytes under `key` of a pickled dict; raises DataError that names `what`."""
    try:
        values = _Unpickler(io.BytesIO(pickled), encoding="bytes").load()
        array = values[key.encode()]
        if isinstance(array, _Array) and array.values is not None:
            return array.values
        raise ValueError(f"{key} is not an array")
    except Exception as error:  # a crafted pickle can raise anything, inside the inert classes alone
        raise DataError(f"{what} is not as expected: {error!s}. Download the official archive") from error
