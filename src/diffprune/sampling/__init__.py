"""Sampling: timestep grids, denoising steps, and a seeded, resumable sampler that shards images over ranks."""
