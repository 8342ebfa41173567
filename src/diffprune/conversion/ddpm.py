"""Convert research checkpoints of DDPM and DDIM to a diffusers UNet2DModel.

Architecture: Ho et al. 2020, appendix B, in the PyTorch form that Song et al. 2021 published their weights for.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from diffprune.conversion.exact_loading import Shape, load_exactly, mismatches, shapes_of
from diffprune.errors import ModelError
from diffprune.pipelines.architecture_configs import architecture

PUBLISHED = {"ddpm-cifar10": "fixed_large", "ddpm-celeba64": "fixed_large", "ddpm-lsun256": "fixed_small"}
"""Published architecture -> variance type of its ancestral steps; shapes identify the architecture."""

_FACTS: Mapping[str, Any] = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
    "act_fn": "silu",
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
"""Config entries of the research network that change its output but not the shapes of its tensors."""

_MODULE_NAMES: tuple[tuple[str, Callable[[re.Match[str], int], str]], ...] = (
    (r"time_embedding\.linear_([12])", lambda m, top: f"temb.dense.{int(m[1]) - 1}"),
    (r"conv_norm_out", lambda m, top: "norm_out"),
    (r"mid_block\.resnets\.(\d+)", lambda m, top: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.(\d+)", lambda m, top: f"mid.attn_{int(m[1]) + 1}"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", lambda m, top: f"down.{m[1]}.block.{m[2]}"),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)", lambda m, top: f"down.{m[1]}.attn.{m[2]}"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", lambda m, top: f"down.{m[1]}.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m, top: f"up.{top - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)", lambda m, top: f"up.{top - int(m[1])}.attn.{m[2]}"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m, top: f"up.{top - int(m[1])}.upsample"),
)
"""Pattern of a diffusers module -> its name in the research network; `top` is the index of the coarsest level."""

_LAYERS = {
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_ATTENTION = re.compile(r"attentions\.\d+\.to_\w+(\.0)?\.weight$")


def from_ddpm(tensors: Mapping[str, Tensor], arch: str | None) -> tuple[DDPMPipeline, str]:
    """Return a pipeline with the research weights and schedule, and the name of its architecture.

    arch: a published name, the path of a config.json, or None to find the published architecture by shapes.
    Raises ModelError, with the names of the tensors, if the weights do not fit.
    """
    name = arch if arch is not None else find_architecture(tensors)
    model = architecture(name)
    _check_facts(model, name)
    names = research_names(model)
    wrong = mismatches(_research_shapes(model, names), tensors)
    if wrong:
        raise ModelError(f"the weights are not those of {name}: " + "; ".join(wrong))
    shapes = shapes_of(model)
    renamed = {key: tensors[research].reshape(shapes[key]) for key, research in names.items()}
    unet = load_exactly(model, renamed, name)
    return DDPMPipeline(unet, schedule(name)), name


def schedule(name: str) -> DDPMScheduler:
    """Return the noise schedule of an architecture: linear betas 1e-4 to 0.02, T = 1000 (Ho et al. 2020, section 4)."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type=PUBLISHED.get(name, "fixed_small"),
    )


def research_names(model: ModelMixin) -> dict[str, str]:
    """Return diffusers name -> research name of every tensor of a UNet2DModel."""
    config: Any = model.config
    top = len(config.block_out_channels) - 1
    return {name: _research_name(name, top) for name in model.state_dict()}


def _research_name(name: str, top: int) -> str:
    for pattern, module_name in _MODULE_NAMES:
        match = re.match(pattern, name)
        if match:
            layer, _, end = name[match.end() :].lstrip(".").rpartition(".")
            return ".".join(part for part in (module_name(match, top), _LAYERS.get(layer, layer), end) if part)
    return name


def _research_shapes(model: ModelMixin, names: Mapping[str, str]) -> dict[str, Shape]:
    """Return the shapes in the research file, where the linear layers of attention are 1x1 convolutions."""
    shapes = shapes_of(model).items()
    return {names[name]: (*shape, 1, 1) if _ATTENTION.search(name) else shape for name, shape in shapes}


def _check_facts(model: ModelMixin, name: str) -> None:
    config: Any = model.config
    if type(model).__name__ != "UNet2DModel":
        raise ModelError(f"{name} is the config of a {type(model).__name__}; format ddpm needs a UNet2DModel")
    wrong = [f"{k}: got {config.get(k)!r}, expected {v!r}" for k, v in _FACTS.items() if config.get(k) != v]
    if wrong:
        raise ModelError(f"the config {name} differs from the research network: " + "; ".join(wrong))


def find_architecture(tensors: Mapping[str, Tensor]) -> str:
    """Return the published architecture with the shapes of the weights; raise ModelError with all differences."""
    reasons = {}
    for name in PUBLISHED:
        model = architecture(name)
        wrong = mismatches(_research_shapes(model, research_names(model)), tensors)
        if not wrong:
            return name
        reasons[name] = "; ".join(wrong)
    lines = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
    raise ModelError(f"the weights fit none of the published architectures; pass --arch config.json\n{lines}")
