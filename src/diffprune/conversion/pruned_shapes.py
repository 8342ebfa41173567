"""Convert weights that another system pruned: the shapes of the tensors show the widths."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffprune.architectures.families import Dim, family_of
from diffprune.artifact.manifest import apply_manifest, manifest_of
from diffprune.artifact.pruned_classes import pruned_class, stock_class, stock_model
from diffprune.artifact.slicing import AXES, WIDTHS, layer_type, on_meta, update_widths
from diffprune.conversion.exact_loading import load_exactly, mismatches, shape_text, shapes_of
from diffprune.conversion.state_dicts import abbreviated
from diffprune.errors import ManifestError, ModelError


def from_shapes(tensors: Mapping[str, Tensor], original: ModelMixin, *, heads: int | None, source: str) -> ModelMixin:
    """Return the pruned denoiser with the weights `tensors`: `original` with smaller layers.

    original: a model of the stock config, with or without weights. heads: number of heads of every attention that had
    several; None keeps the width of a head. source: where the tensors came from, for the manifest's provenance. The
    number of norm groups does not change. Weights of stock shapes return a model of the stock class.
    Raises ModelError with each module whose shapes are not those of a narrower layer.
    """
    stock = stock_model(original)
    family = family_of(stock)
    names = mismatches(dict.fromkeys(shapes_of(stock), None), tensors)
    if names:
        raise ModelError(f"the weights are not those of a smaller {type(stock).__name__}: " + "; ".join(names))
    small = on_meta(stock)
    wrong = [line for path, module in small.named_modules() for line in _narrow(path, module, tensors)]
    if wrong:
        raise ModelError(f"{len(wrong)} modules do not have the shapes of narrower layers: " + abbreviated(wrong))
    try:
        update_widths(stock, small, heads=heads)
        manifest = manifest_of(small, stock, [])
        apply_manifest(manifest, stock_model(original))
    except ValueError as error:
        raise ModelError(f"the number of heads is not clear: {error}; pass it with --heads") from error
    except ManifestError as error:
        raise ModelError(f"the shapes do not fit each other: {error}") from error
    if not manifest.modules:
        return load_exactly(small, tensors, source)
    _check_layers_connect(small, family.example_inputs(small, 1, torch.device("meta")))
    small.__class__ = pruned_class(stock_class(stock))
    cast(Any, small).pruning_provenance = [{"criterion": "unknown", "options": {}, "converted_from": source}]
    return load_exactly(small, tensors, source)


def _narrow(path: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Resize a stock module in place to the shapes of its tensors; yield why it is not a narrower layer."""
    kind = layer_type(module)
    widths: dict[Dim, int] = {}
    changed = False
    for name, parameter in module.named_parameters(recurse=False):
        shape = tuple(tensors[f"{path}.{name}" if path else name].shape)
        resizable = {} if kind is None else {axis: dim for dim, axis in AXES[kind].get(name, {}).items()}
        fits = len(shape) == parameter.dim() and all(
            0 < now <= stock if axis in resizable else now == stock
            for axis, (now, stock) in enumerate(zip(shape, parameter.shape, strict=True))
        )
        sizes = {dim: shape[axis] for axis, dim in resizable.items()} if fits else {}
        if not fits or any(widths.get(dim, size) != size for dim, size in sizes.items()):
            yield f"{path}.{name} (got {shape_text(shape)}, stock {shape_text(parameter.shape)})"
            return
        widths |= sizes
        if shape != tuple(parameter.shape):
            changed = True
            setattr(module, name, nn.Parameter(parameter.new_empty(shape), requires_grad=parameter.requires_grad))
    if kind is None or not changed:
        return
    for dim, size in widths.items():
        setattr(module, WIDTHS[kind][dim], size)
    if isinstance(module, nn.GroupNorm) and module.num_channels % module.num_groups:
        yield f"{path} ({module.num_channels} channels in {module.num_groups} norm groups)"
    elif isinstance(module, nn.Conv2d) and module.groups != 1:
        yield f"{path} (a convolution in {module.groups} groups)"


def _check_layers_connect(model: ModelMixin, inputs: Mapping[str, Any]) -> None:
    """Run a forward pass without values; raise ModelError if a layer does not fit the output of the previous ones."""
    inside: list[str] = []
    handles = []
    for path, module in cast(nn.Module, model).named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, path=path: inside.append(path)))
        handles.append(module.register_forward_hook(lambda module, args, output: inside.pop() and None))
    try:
        with torch.no_grad():
            cast(Any, model)(**inputs)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{inside[-1]} does not fit the output of the previous layers: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
