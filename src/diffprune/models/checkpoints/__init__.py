"""Checkpoints of other systems: read without executing anything, and brought into diffusers form."""
