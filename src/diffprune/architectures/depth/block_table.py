"""Table of the block lists of each denoiser class."""

from collections.abc import Mapping

from torch import nn

from diffprune.architectures.depth.block_lists import BlockList, Finder, module_list
from diffprune.architectures.depth.special_block_lists import (
    attention_blocks,
    hidream_blocks,
    long_skip_pairs,
    mid_block,
)

_PLAIN = (module_list("transformer_blocks", "num_layers"),)
_BLOCKS = (module_list("blocks", "num_layers"),)
_LAYERS = (module_list("layers", "num_layers"),)
_DOUBLE_AND_SINGLE = (*_PLAIN, module_list("single_transformer_blocks", "num_single_layers"))

DEPTHS: Mapping[str, tuple[Finder, ...]] = {
    "DiTTransformer2DModel": (module_list("transformer_blocks", "num_layers", first_fixed=True),),
    "SD3Transformer2DModel": (
        module_list("transformer_blocks", "num_layers", last_fixed=True, positions="dual_attention_layers"),
    ),
    **dict.fromkeys(
        ("FluxTransformer2DModel", "Flux2Transformer2DModel", "BriaTransformer2DModel",
         "HunyuanImageTransformer2DModel", "HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel",
         "LongCatImageTransformer2DModel", "OvisImageTransformer2DModel"), _DOUBLE_AND_SINGLE,
    ),
    **dict.fromkeys(
        ("AllegroTransformer3DModel", "CogVideoXTransformer3DModel", "CogView3PlusTransformer2DModel",
         "CogView4Transformer2DModel", "GlmImageTransformer2DModel", "HunyuanVideo15Transformer3DModel",
         "Krea2Transformer2DModel", "LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel",
         "MiniMaxH3Transformer3DModel", "PixArtTransformer2DModel", "QwenImageTransformer2DModel",
         "SanaTransformer2DModel", "SanaVideoTransformer3DModel", "StableAudioDiTModel"), _PLAIN,
    ),
    **dict.fromkeys(
        ("WanTransformer3DModel", "AnyFlowTransformer3DModel", "ChronoEditTransformer3DModel",
         "HeliosTransformer3DModel", "SkyReelsV2Transformer3DModel"), _BLOCKS,
    ),
    **dict.fromkeys(
        ("ErnieImageTransformer2DModel", "Ideogram4Transformer2DModel", "Lumina2Transformer2DModel",
         "LuminaNextDiT2DModel", "OmniGenTransformer2DModel"), _LAYERS,
    ),
    **dict.fromkeys(
        ("JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"),
        (module_list("double_blocks", "num_layers"),),
    ),
    "Kandinsky5Transformer3DModel": (
        module_list("text_transformer_blocks", "num_text_blocks"),
        module_list("visual_transformer_blocks", "num_visual_blocks"),
    ),
    "StableAudio3DiTModel": (module_list("transformer_blocks", "depth"),),
    "AuraFlowTransformer2DModel": (
        module_list("joint_transformer_blocks", "num_mmdit_layers"),
        module_list("single_transformer_blocks", "num_single_dit_layers"),
    ),
    "ZImageTransformer2DModel": (module_list("layers", "n_layers"),),
    "LatteTransformer3DModel": (  # the temporal position embedding is added inside its first pair
        module_list("transformer_blocks", "num_layers", paired=("temporal_transformer_blocks",), first_fixed=True),
    ),
    "MochiTransformer3DModel": (module_list("transformer_blocks", "num_layers", last_fixed=True),),
    # control hints are added after the blocks in vace_layers
    "WanVACETransformer3DModel": (module_list("blocks", "num_layers", positions="vace_layers", positions_fixed=True),),
    "EasyAnimateTransformer3DModel": (module_list("transformer_blocks", "num_layers", leading="mmdit_layers"),),
    "HiDreamImageTransformer2DModel": (hidream_blocks,),
    "HunyuanDiT2DModel": (long_skip_pairs,),
    "PRXTransformer2DModel": (module_list("blocks", "depth"),),
    "UNet2DConditionModel": (attention_blocks, mid_block),
    "UNet2DModel": (mid_block,),
}  # fmt: skip
"""Class name -> finders. A class is listed if removing a block equals bypassing it, which the slow tests check."""


def block_lists(denoiser: nn.Module) -> tuple[BlockList, ...]:
    """Return the block lists of a denoiser; empty if its class has none or if nothing can be removed."""
    finders = next((DEPTHS[kind.__name__] for kind in type(denoiser).__mro__ if kind.__name__ in DEPTHS), ())
    lists = (blocks for finder in finders for blocks in finder(denoiser))
    return tuple(blocks for blocks in lists if len(blocks.units) > (0 if blocks.may_empty else 1))
