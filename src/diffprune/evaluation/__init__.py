"""Image metrics: of image pairs, of image sets, and of images with prompts."""
