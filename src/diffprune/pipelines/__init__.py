"""Everything around the denoiser: loading, noise process, prompts and conditioning."""
