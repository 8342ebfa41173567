"""Train a denoiser: from scratch, or to recover the quality of a pruned one."""
