"""Everything around the denoiser: loading, noise schedule, prompts and conditioning."""
