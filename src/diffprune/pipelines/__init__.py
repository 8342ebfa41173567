"""Pipelines around a denoiser: loading, saving, noise schedule, prompts and conditioning."""
