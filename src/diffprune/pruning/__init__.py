"""Pruning: apply a plan to a model, in memory or on disk, and compensate for the removed units."""
