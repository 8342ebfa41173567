# %% [markdown]
# # Prune and recover a DDPM
#
# After this page you have pruned a DDPM of handwritten digits to half its MACs, finetuned it, and measured both models.
# The script takes about two minutes on a CPU: `python examples/prune_ddpm.py`.

# %%
import tempfile
from pathlib import Path

import diffprune

MODEL, DATA = "digits", "digits"  # any pipeline folder or hub id; any folder of images, parquet file or dataset id
out = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Plan and prune
#
# The plan keeps the largest model within half of the MACs. `prune` returns a new pipeline with compensated weights.

# %%
original = diffprune.load_pipeline(MODEL)
plan = diffprune.plan(original, data=DATA, keep_macs=0.5, timestep_stride=50)
pruned = diffprune.prune(original, plan)
print(f"parameters {plan.before.params:,} -> {plan.after.params:,}, MACs {plan.before.macs:,} -> {plan.after.macs:,}")

# %% [markdown]
# ## Recover
#
# The original is the teacher. Digits are not mirrored, so `flip` is off.

# %%
recovered = diffprune.finetune(pruned, original, data=DATA, steps=100, batch_size=64, ema_decay=0.98, flip=False)
recovered.save_pretrained(out / "recovered")

# %% [markdown]
# ## Compare
#
# Image i starts from the same noise in every model, so the metrics compare pairs.

# %%
for name, pipeline in {"original": original, "pruned": pruned, "recovered": recovered}.items():
    diffprune.sample(pipeline, out / name / "images", num=32, steps=20)
for name in ("pruned", "recovered"):
    numbers = diffprune.evaluate(out / name / "images", out / "original" / "images", metrics=("ssim", "mse"))
    print(f"{name}: SSIM {numbers['ssim']:.3f}, MSE {numbers['mse']:.4f}")
