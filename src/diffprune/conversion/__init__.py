"""Conversion: read checkpoints of other systems without executing code, and convert them to diffusers models."""
