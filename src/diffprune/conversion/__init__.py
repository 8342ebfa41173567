"""Checkpoints of other systems, read without executing code and brought into diffusers form."""
