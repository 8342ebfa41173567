"""Computation of a denoiser: device, placement, offload, autocast dtype, cost and latency."""
