"""Drawing images: timestep grids, steps, and the seeded, sharded, resumable sampler."""
