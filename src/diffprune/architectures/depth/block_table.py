"""Which whole blocks a denoiser class can do without."""

from collections.abc import Mapping

from torch import nn

from diffprune.architectures.depth.block_lists import BlockList, Finder, listed
from diffprune.architectures.depth.special_block_lists import by_long_skips, middle, of_attentions, with_captions

_PLAIN = (listed("transformer_blocks", "num_layers"),)
_BLOCKS = (listed("blocks", "num_layers"),)
_LAYERS = (listed("layers", "num_layers"),)
_DOUBLE_AND_SINGLE = (*_PLAIN, listed("single_transformer_blocks", "num_single_layers"))

DEPTHS: Mapping[str, tuple[Finder, ...]] = {
    "DiTTransformer2DModel": (listed("transformer_blocks", "num_layers", first_stays=True),),
    "SD3Transformer2DModel": (
        listed("transformer_blocks", "num_layers", last_stays=True, positions="dual_attention_layers"),
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
        (listed("double_blocks", "num_layers"),),
    ),
    "Kandinsky5Transformer3DModel": (
        listed("text_transformer_blocks", "num_text_blocks"),
        listed("visual_transformer_blocks", "num_visual_blocks"),
    ),
    "StableAudio3DiTModel": (listed("transformer_blocks", "depth"),),
    "AuraFlowTransformer2DModel": (
        listed("joint_transformer_blocks", "num_mmdit_layers"),
        listed("single_transformer_blocks", "num_single_dit_layers"),
    ),
    "ZImageTransformer2DModel": (listed("layers", "n_layers"),),
    "LatteTransformer3DModel": (  # its first pair has the temporal position embedding added in between
        listed("transformer_blocks", "num_layers", beside=("temporal_transformer_blocks",), first_stays=True),
    ),
    "MochiTransformer3DModel": (listed("transformer_blocks", "num_layers", last_stays=True),),
    # hints come in behind the blocks that are listed
    "WanVACETransformer3DModel": (listed("blocks", "num_layers", positions="vace_layers", positions_stay=True),),
    "EasyAnimateTransformer3DModel": (listed("transformer_blocks", "num_layers", leading="mmdit_layers"),),
    "HiDreamImageTransformer2DModel": (with_captions,),
    "HunyuanDiT2DModel": (by_long_skips,),
    "PRXTransformer2DModel": (listed("blocks", "depth"),),
    "UNet2DConditionModel": (of_attentions, middle),
    "UNet2DModel": (middle,),
}  # fmt: skip
"""By diffusers class. A class is here when the model without a block equals the one with that block bypassed."""


def block_lists(denoiser: nn.Module) -> tuple[BlockList, ...]:
    """The lists of blocks that a denoiser can lose entries of; empty where its config cannot say so."""
    finders = next((DEPTHS[kind.__name__] for kind in type(denoiser).__mro__ if kind.__name__ in DEPTHS), ())
    lists = (found for finder in finders for found in finder(denoiser))
    return tuple(found for found in lists if len(found.units) > (0 if found.may_empty else 1))
