"""Example inputs of a denoiser, made from its config: what tracing, counting and timing call it with."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffprune.errors import ModelError

Inputs = dict[str, Any]
"""Keyword arguments of one forward pass."""

TEXT_TOKENS = 77
"""Length of the text that example inputs hold: CLIP's."""

SIDE, FRAMES = 64, 5
"""Height and width of latents, and frames of latent videos, where the config says nothing."""

TEXT_WIDTHS = (
    "joint_attention_dim", "caption_channels", "text_embed_dim", "text_dim", "cap_feat_dim", "in_text_dim",
    "context_in_dim", "condition_dim", "encoder_hidden_size", "dit_text_dim", "cross_attention_input_dim",
    "cond_token_dim", "encoder_hid_dim", "cross_attention_dim",
)  # fmt: skip
"""Names under which configs hold the width of text tokens, most telling first."""


@dataclass(frozen=True)
class Maker:
    """Makes tensors for one class: a batch of zeros of a shape, without the batch, or of whole numbers."""

    batch: int
    device: torch.device

    def __call__(self, *shape: int) -> Tensor:
        """Zeros (N, *shape)."""
        return torch.zeros(self.batch, *shape, device=self.device)

    def bare(self, *shape: int) -> Tensor:
        """Zeros of the shape alone."""
        return torch.zeros(*shape, device=self.device)

    def whole(self, *shape: int) -> Tensor:
        """Whole zeros (N, *shape)."""
        return torch.zeros(self.batch, *shape, dtype=torch.long, device=self.device)

    def mask(self, *shape: int) -> Tensor:
        """A mask (N, *shape) that lets everything through."""
        return torch.ones(self.batch, *shape, dtype=torch.bool, device=self.device)


Special = Callable[[Any, Maker], Inputs]
"""(config, maker) -> the inputs that the names alone do not tell."""


def derived_inputs(special: Special | None = None) -> Callable[[nn.Module, int, torch.device], Inputs]:
    """Inputs by the names of the forward pass and of the config, and what `special` says besides.

    Raises ModelError that names a parameter about which neither says anything.
    """

    def inputs_of(model: nn.Module, batch_size: int, device: torch.device) -> Inputs:
        config: Any = getattr(model, "config", None)
        make = Maker(batch_size, device)
        inputs = {} if special is None or config is None else special(config, make)
        for name, parameter in inspect.signature(model.forward).parameters.items():
            if name in inputs:
                continue
            guess = None if name in MASKS and parameter.default is not parameter.empty else GUESSES.get(name)
            value = None if guess is None or config is None else guess(config, make)
            if value is not None:
                inputs[name] = value
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                raise ModelError(
                    f"{type(model).__name__} is called with {name!r}, and its config does not tell what that is; "
                    "give example_inputs to diffprune.register_family: docs/how-to/add-a-family.md"
                )
        return inputs

    return inputs_of


def side(config: Any) -> tuple[int, int]:
    """Height and width of x_t."""
    size = getattr(config, "sample_size", None) or SIDE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def text_width(config: Any) -> int | None:
    """Width of the text tokens; None where the config has no name for it."""
    found = [getattr(config, name, None) for name in TEXT_WIDTHS]
    return next((max(w) if isinstance(w, list | tuple) else w for w in found if w), None)


def image(config: Any, make: Maker) -> Tensor:
    """(N, C, H, W)."""
    return make(config.in_channels, *side(config))


def video(config: Any, make: Maker) -> Tensor:
    """(N, C, F, H, W)."""
    return make(config.in_channels, FRAMES, SIDE // 2, SIDE // 2)


def tokens(config: Any, make: Maker) -> Tensor:
    """(N, L, C): an image of patches."""
    return make(SIDE * SIDE // 4, config.in_channels)


def _text(config: Any, make: Maker) -> Tensor | None:
    size = text_width(config)
    return None if size is None else make(TEXT_TOKENS, size)


def _if_set(name: str, *shape: int) -> Callable[[Any, Maker], Tensor | None]:
    return lambda config, make: make(*shape) if getattr(config, name, None) else None


def _of_width(name: str) -> Callable[[Any, Maker], Tensor | None]:
    return lambda config, make: make(size) if (size := getattr(config, name, None)) else None


def _ids(length: Callable[[], int]) -> Callable[[Any, Maker], Tensor | None]:
    def made(config: Any, make: Maker) -> Tensor | None:
        axes = getattr(config, "axes_dims_rope", None)
        return None if axes is None else make.bare(length(), len(axes))

    return made


MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")
"""Left out where they may be."""

GUESSES: Mapping[str, Callable[[Any, Maker], Any]] = {
    "sample": image,
    "hidden_states": image,
    "timestep": lambda config, make: make(),
    "encoder_hidden_states": _text,
    **dict.fromkeys(MASKS, lambda config, make: make.mask(TEXT_TOKENS)),
    "pooled_projections": _of_width("pooled_projection_dim"),
    "guidance": _if_set("guidance_embeds"),
    "img_ids": _ids(lambda: SIDE * SIDE // 4),
    "txt_ids": _ids(lambda: TEXT_TOKENS),
}
"""What a parameter of this name is; None where the config does not tell."""


def unet2d_inputs(config: Any, make: Maker) -> Inputs:
    """t, and class labels where the model takes them."""
    size = config.sample_size or 32
    inputs: Inputs = {
        "sample": make(config.in_channels, *((size, size) if isinstance(size, int) else size)),
        "timestep": make.whole(),
    }
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        inputs["class_labels"] = make() if config.class_embed_type == "identity" else make.whole()
    return inputs


def unet2d_condition_inputs(config: Any, make: Maker) -> Inputs:
    """t, text tokens, and the class, text, size or image embeddings that the config asks for."""
    inputs = unet2d_inputs(config, make)
    cross = config.cross_attention_dim
    text = config.encoder_hid_dim or (cross if isinstance(cross, int) else max(cross))
    inputs["encoder_hidden_states"] = make(TEXT_TOKENS, text)
    if config.class_embed_type in ("projection", "simple_projection"):
        inputs["class_labels"] = make(config.projection_class_embeddings_input_dim)
    more: Inputs = {}
    if config.addition_embed_type == "text_time":
        sizes = 6 * config.addition_time_embed_dim
        more = {"text_embeds": make(config.projection_class_embeddings_input_dim - sizes), "time_ids": make(6)}
    elif config.addition_embed_type == "text_image":
        more = {"text_embeds": make(cross), "image_embeds": make(cross)}
    elif config.addition_embed_type in ("image", "image_hint"):
        more = {"image_embeds": make(text)}
    if config.addition_embed_type == "image_hint":
        more["hint"] = make(3, 8 * inputs["sample"].shape[2], 8 * inputs["sample"].shape[3])
    if config.encoder_hid_dim_type in ("text_image_proj", "image_proj"):
        more.setdefault("image_embeds", make(cross if config.encoder_hid_dim_type == "text_image_proj" else text))
    return {**inputs, "added_cond_kwargs": more} if more else inputs
