"""Example inputs of a denoiser, made from its config: what tracing, counting and timing call it with."""

from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
"""Keyword arguments of one forward pass."""

TEXT_TOKENS = 77
"""Length of the text that example inputs hold: CLIP's."""


def unet2d_inputs(model: nn.Module, batch_size: int, device: torch.device) -> Inputs:
    """x_t, t and, where the model takes them, class labels."""
    config: Any = model.config
    size = config.sample_size or 32
    height, width = (size, size) if isinstance(size, int) else size
    inputs: Inputs = {
        "sample": torch.zeros(batch_size, config.in_channels, height, width, device=device),
        "timestep": torch.zeros(batch_size, dtype=torch.long, device=device),
    }
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        dtype = torch.float32 if config.class_embed_type == "identity" else torch.long
        inputs["class_labels"] = torch.zeros(batch_size, dtype=dtype, device=device)
    return inputs


def unet2d_condition_inputs(model: nn.Module, batch_size: int, device: torch.device) -> Inputs:
    """x_t, t, text tokens, and the class, text, size or image embeddings that the config asks for."""
    config: Any = model.config

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch_size, *shape, device=device)

    inputs = unet2d_inputs(model, batch_size, device)
    cross = config.cross_attention_dim
    text = config.encoder_hid_dim or (cross if isinstance(cross, int) else max(cross))
    inputs["encoder_hidden_states"] = zeros(TEXT_TOKENS, text)
    if config.class_embed_type in ("projection", "simple_projection"):
        inputs["class_labels"] = zeros(config.projection_class_embeddings_input_dim)
    more: Inputs = {}
    projected = config.projection_class_embeddings_input_dim
    if config.addition_embed_type == "text_time":
        size = getattr(model, "add_time_proj").num_channels  # noqa: B009 (a submodule by name)
        more = {"text_embeds": zeros(projected - 6 * size), "time_ids": zeros(6)}
    elif config.addition_embed_type == "text_image":
        more = {"text_embeds": zeros(cross), "image_embeds": zeros(cross)}
    elif config.addition_embed_type in ("image", "image_hint"):
        more = {"image_embeds": zeros(text)}
    if config.addition_embed_type == "image_hint":
        more["hint"] = zeros(3, 8 * inputs["sample"].shape[2], 8 * inputs["sample"].shape[3])
    if config.encoder_hid_dim_type in ("text_image_proj", "image_proj"):
        more.setdefault("image_embeds", zeros(cross if config.encoder_hid_dim_type == "text_image_proj" else text))
    if more:
        inputs["added_cond_kwargs"] = more
    return inputs
