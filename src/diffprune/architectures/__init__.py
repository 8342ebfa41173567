"""Facts per denoiser class: layer names, example inputs, block lists."""
