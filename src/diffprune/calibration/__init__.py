"""Calibration sets: the images or latents, with conditioning, that a model is scored on."""
