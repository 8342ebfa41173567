"""Judging images: features, distances between sets, and metrics of pairs."""
