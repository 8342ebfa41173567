"""Example inputs per denoiser class."""
