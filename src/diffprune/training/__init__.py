"""Training: from scratch, or to recover what pruning cost."""
