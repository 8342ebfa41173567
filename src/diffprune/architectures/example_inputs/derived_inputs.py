"""Derive example inputs of a denoiser from the names in its forward pass and in its config."""

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
"""Number of text tokens in example inputs: that of CLIP."""

SIDE, FRAMES = 64, 5
"""Height and width of latents, and number of latent frames, if the config has no entry for them."""

TEXT_WIDTHS = (
    "joint_attention_dim", "caption_channels", "text_embed_dim", "text_dim", "cap_feat_dim", "in_text_dim",
    "context_in_dim", "condition_dim", "encoder_hidden_size", "dit_text_dim", "cross_attention_input_dim",
    "cond_token_dim", "encoder_hid_dim", "cross_attention_dim",
)  # fmt: skip
"""Config entries with the width of text tokens, in order of preference."""


@dataclass(frozen=True)
class InputFactory:
    """Create the input tensors of one denoiser; shapes are without the batch dimension.

    side: height and width of latents. frames: of latent videos. text_tokens: length of the text.
    """

    batch: int
    device: torch.device
    side: int
    frames: int
    text_tokens: int

    def __call__(self, *shape: int) -> Tensor:
        """Return zeros (N, *shape)."""
        return torch.zeros(self.batch, *shape, device=self.device)

    def unbatched(self, *shape: int) -> Tensor:
        """Return zeros of the shape, without a batch dimension."""
        return torch.zeros(*shape, device=self.device)

    def integers(self, *shape: int) -> Tensor:
        """Return integer zeros (N, *shape)."""
        return torch.zeros(self.batch, *shape, dtype=torch.long, device=self.device)

    def mask(self, *shape: int) -> Tensor:
        """Return a mask (N, *shape) that is True everywhere."""
        return torch.ones(self.batch, *shape, dtype=torch.bool, device=self.device)


Special = Callable[[Any, InputFactory], Inputs]
"""(config, factory) -> the inputs of a class that its names do not determine."""


def derived_inputs(special: Special | None = None) -> Callable[[nn.Module, int, torch.device], Inputs]:
    """Return a function of (model, batch size, device) that creates example inputs.

    special: inputs of the class that its names do not determine; they take precedence.
    The function raises ModelError for a required parameter of the forward pass that it cannot derive.
    """

    def inputs_of(model: nn.Module, batch_size: int, device: torch.device) -> Inputs:
        config: Any = getattr(model, "config", None)
        make = InputFactory(batch_size, device, SIDE, FRAMES, TEXT_TOKENS)
        inputs = {} if special is None or config is None else special(config, make)
        for name, parameter in inspect.signature(model.forward).parameters.items():
            if name in inputs:
                continue
            rule = None if name in MASKS and parameter.default is not parameter.empty else BY_NAME.get(name)
            value = None if rule is None or config is None else rule(config, make)
            if value is not None:
                inputs[name] = value
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                raise ModelError(
                    f"cannot derive the input {name!r} of {type(model).__name__} from its config; pass example_inputs "
                    "to diffprune.register_family (docs/how-to/add-a-family.md)"
                )
        return inputs

    return inputs_of


def zeros_of(**shapes: tuple[int | str, ...]) -> Special:
    """Describe inputs that are zeros: name -> shape, whose strings are config entries or sizes of the factory."""

    def inputs_of(config: Any, make: InputFactory) -> Inputs:
        def size(dim: int | str) -> int:
            return dim if isinstance(dim, int) else int(getattr(make if hasattr(make, dim) else config, dim))

        return {name: make(*map(size, shape)) for name, shape in shapes.items()}

    return inputs_of


def latent_size(config: Any) -> tuple[int, int]:
    """Return height and width of x_t."""
    size = getattr(config, "sample_size", None) or SIDE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def text_width(config: Any) -> int | None:
    """Return the width of the text tokens; None if the config has no entry for it."""
    widths = [getattr(config, name, None) for name in TEXT_WIDTHS]
    return next((max(w) if isinstance(w, list | tuple) else w for w in widths if w), None)


def image(config: Any, make: InputFactory) -> Tensor:
    """Return x_t of an image, (N, C, H, W)."""
    return make(config.in_channels, *latent_size(config))


def video(config: Any, make: InputFactory) -> Tensor:
    """Return x_t of a video, (N, C, F, H, W)."""
    return make(config.in_channels, make.frames, make.side // 2, make.side // 2)


def tokens(config: Any, make: InputFactory) -> Tensor:
    """Return x_t of an image as a sequence of patches, (N, L, C)."""
    return make(make.side**2 // 4, config.in_channels)


def _text(config: Any, make: InputFactory) -> Tensor | None:
    size = text_width(config)
    return None if size is None else make(make.text_tokens, size)


def _if_set(name: str, *shape: int) -> Callable[[Any, InputFactory], Tensor | None]:
    return lambda config, make: make(*shape) if getattr(config, name, None) else None


def _of_width(name: str) -> Callable[[Any, InputFactory], Tensor | None]:
    return lambda config, make: make(size) if (size := getattr(config, name, None)) else None


def _position_ids(config: Any, make: InputFactory, length: int) -> Tensor | None:
    axes = getattr(config, "axes_dims_rope", None)
    return None if axes is None else make.unbatched(length, len(axes))


MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")
"""Parameters that are omitted if they have a default."""

BY_NAME: Mapping[str, Callable[[Any, InputFactory], Any]] = {
    "sample": image,
    "hidden_states": image,
    "timestep": lambda config, make: make(),
    "encoder_hidden_states": _text,
    **dict.fromkeys(MASKS, lambda config, make: make.mask(make.text_tokens)),
    "pooled_projections": _of_width("pooled_projection_dim"),
    "guidance": _if_set("guidance_embeds"),
    "img_ids": lambda config, make: _position_ids(config, make, make.side**2 // 4),
    "txt_ids": lambda config, make: _position_ids(config, make, make.text_tokens),
}
"""Parameter of a forward pass -> its value, or None if the config does not determine it."""


def unet2d_inputs(config: Any, make: InputFactory) -> Inputs:
    """Return x_t, t, and class labels if the model has them."""
    size = config.sample_size or 32
    inputs: Inputs = {
        "sample": make(config.in_channels, *((size, size) if isinstance(size, int) else size)),
        "timestep": make.integers(),
    }
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        inputs["class_labels"] = make() if config.class_embed_type == "identity" else make.integers()
    return inputs


def unet2d_condition_inputs(config: Any, make: InputFactory) -> Inputs:
    """Return x_t, t, text tokens, and the class, text, size or image embeddings in the config."""
    inputs = unet2d_inputs(config, make)
    cross = config.cross_attention_dim
    text = config.encoder_hid_dim or (cross if isinstance(cross, int) else max(cross))
    inputs["encoder_hidden_states"] = make(make.text_tokens, text)
    if config.class_embed_type in ("projection", "simple_projection"):
        inputs["class_labels"] = make(config.projection_class_embeddings_input_dim)
    added: Inputs = {}
    if config.addition_embed_type == "text_time":
        sizes = 6 * config.addition_time_embed_dim
        added = {"text_embeds": make(config.projection_class_embeddings_input_dim - sizes), "time_ids": make(6)}
    elif config.addition_embed_type == "text_image":
        added = {"text_embeds": make(cross), "image_embeds": make(cross)}
    elif config.addition_embed_type in ("image", "image_hint"):
        added = {"image_embeds": make(text)}
    if config.addition_embed_type == "image_hint":
        added["hint"] = make(3, 8 * inputs["sample"].shape[2], 8 * inputs["sample"].shape[3])
    if config.encoder_hid_dim_type in ("text_image_proj", "image_proj"):
        added.setdefault("image_embeds", make(cross if config.encoder_hid_dim_type == "text_image_proj" else text))
    return {**inputs, "added_cond_kwargs": added} if added else inputs
