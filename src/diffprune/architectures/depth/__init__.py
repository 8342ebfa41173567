"""Which whole blocks a denoiser class can lose."""
