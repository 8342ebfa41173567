"""Calibration sets: images or latents, with noise and conditioning, for scores and compensation."""
