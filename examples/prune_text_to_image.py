# %% [markdown]
# # Prune a text-to-image pipeline in depth and width
#
# After this page you have removed whole transformer blocks, then heads and neurons, of a text-to-image pipeline.
# The script runs in seconds on a tiny stand-in: `python examples/prune_text_to_image.py`. It needs
# `pip install 'diffprune[clip]'`. Set `MODEL` to prune a real pipeline.

# %%
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diffprune

MODEL = None  # such as "stable-diffusion-v1-5/stable-diffusion-v1-5"
out = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The stand-in
#
# A Stable Diffusion pipeline of the real classes with random weights and a vocabulary of four words.


# %%
def tiny_pipeline() -> StableDiffusionPipeline:
    """Return a Stable Diffusion pipeline with random weights that runs in seconds."""
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "blue</w>", "cat</w>"]
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, transformer_layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=autoencoder, text_encoder=CLIPTextModel(text), unet=unet, safety_checker=None, feature_extractor=None,
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16),
        scheduler=DDIMScheduler(num_train_timesteps=100, clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
    )  # fmt: skip


pipe = diffprune.load_pipeline(MODEL) if MODEL else tiny_pipeline()
prompts = out / "prompts.txt"
prompts.write_text("a red cat\na blue cat\n\n")  # the blank line is the unconditional half of guidance
generated = {"data": "generated", "prompts": str(prompts), "num_calibration_images": 3, "generation_steps": 4}

# %% [markdown]
# ## Depth
#
# Each block is scored by the output error without it. The model keeps at least 90 % of its parameters.

# %%
plan = diffprune.plan(pipe, kinds=("blocks",), keep_params=0.9, ranking="global", block_timesteps=2, **generated)
shallow = diffprune.prune(pipe, plan, compensate=False)
print(f"depth: {plan.before.params:,} -> {plan.after.params:,} parameters")

# %% [markdown]
# ## Width
#
# Heads and neurons are scored on the latents of the shallower model. Compensation uses the same latents.

# %%
plan = diffprune.plan(shallow, kinds=("heads", "neurons"), ratio=0.25, criterion="taylor", **generated)
small = diffprune.prune(shallow, plan, num_compensation_images=8)
print(f"width: {plan.before.params:,} -> {plan.after.params:,} parameters")

# %% [markdown]
# ## Recover and sample

# %%
small = diffprune.finetune(
    small, pipe, data="generated", prompts=str(prompts), num_generated=4, generation_steps=4, steps=4, batch_size=2
)
small.save_pretrained(out / "small")
images = diffprune.sample(small, out / "images", prompts=str(prompts), num=3, steps=4)
print(f"{len(images)} images in {out / 'images'}")
