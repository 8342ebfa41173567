"""Which whole blocks of a denoiser class can be removed."""
