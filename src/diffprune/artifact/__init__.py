"""The pruned model in memory and on disk: slicing, manifest, pruned classes."""
