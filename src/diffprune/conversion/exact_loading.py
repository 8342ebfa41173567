"""Load converted tensors into an empty model; any missing or unexpected tensor or wrong shape is an error."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffprune.conversion.state_dicts import abbreviated
from diffprune.errors import ModelError

Shape = tuple[int, ...]


def mismatches(expected: Mapping[str, Shape | None], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return how tensors differ from expected shapes (None: any shape), one line per kind; empty if they match."""
    return [line for line in _mismatches(expected, tensors) if line]


def _mismatches(expected: Mapping[str, Shape | None], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield _listed("missing", [name for name in expected if name not in tensors])
    yield _listed("unexpected", [name for name in tensors if name not in expected])
    yield _listed(
        "with the wrong shape",
        [
            f"{name} (got {shape_text(tensors[name].shape)}, expected {shape_text(shape)})"
            for name, shape in expected.items()
            if shape is not None and name in tensors and tuple(tensors[name].shape) != shape
        ],
    )


def shapes_of(model: ModelMixin) -> dict[str, Shape]:
    """Return the shape of every tensor of a model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_exactly(model: ModelMixin, tensors: Mapping[str, Tensor], label: str) -> ModelMixin:
    """Load copies of `tensors` into `model`, which is on the meta device; return it in its own dtype and in eval mode.

    Raises ModelError that starts with `label` and lists every kind of mismatch.
    """
    wrong = mismatches(shapes_of(model), tensors)
    if wrong:
        raise ModelError(f"{label}: " + "; ".join(wrong))
    target: Any = model
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    copies = {name: tensor.detach().to(dtypes[name], copy=True).contiguous() for name, tensor in tensors.items()}
    target.load_state_dict(copies, assign=True)
    target.requires_grad_(True).eval()
    return model


def _listed(kind: str, names: Sequence[str]) -> str:
    return f"{len(names)} {kind}: {abbreviated(names)}" if names else ""


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape for messages, such as "16x1x3x3"."""
    return "x".join(map(str, shape)) or "scalar"
