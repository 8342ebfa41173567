"""Loading converted tensors into an empty model, exactly: nothing missing, nothing left over, every shape right."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffprune.conversion.state_dicts import some
from diffprune.errors import ModelError

Shape = tuple[int, ...]


def mismatches(expected: Mapping[str, Shape | None], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from fitting expected shapes (None: any), in their own names; empty when they fit."""
    found = list(_mismatches(expected, tensors))
    return [line for line in found if line]


def _mismatches(expected: Mapping[str, Shape | None], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield _listed("missing", [name for name in expected if name not in tensors])
    yield _listed("left over", [name for name in tensors if name not in expected])
    yield _listed(
        "of another shape",
        [
            f"{name} (got {shown(tensors[name].shape)}, expected {shown(shape)})"
            for name, shape in expected.items()
            if shape is not None and name in tensors and tuple(tensors[name].shape) != shape
        ],
    )


def shapes_of(model: ModelMixin) -> dict[str, Shape]:
    """The shape of every tensor of a model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def filled(model: ModelMixin, tensors: Mapping[str, Tensor], what: str) -> ModelMixin:
    """`model`, made on the meta device, with copies of `tensors` as its weights, in its own dtype and in eval mode.

    Raises ModelError that begins with `what` and names every kind of mismatch.
    """
    wrong = mismatches(shapes_of(model), tensors)
    if wrong:
        raise ModelError(f"{what}: " + "; ".join(wrong))
    here: Any = model
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    copies = {name: tensor.detach().to(dtypes[name], copy=True).contiguous() for name, tensor in tensors.items()}
    here.load_state_dict(copies, assign=True)
    here.requires_grad_(True).eval()
    return model


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what}: {some(names)}" if names else ""


def shown(shape: Sequence[int]) -> str:
    """A shape in a message."""
    return "x".join(map(str, shape)) or "scalar"
