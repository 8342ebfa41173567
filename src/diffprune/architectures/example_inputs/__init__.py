"""Example inputs of each denoiser class, for tracing, counting and timing."""
