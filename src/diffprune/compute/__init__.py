"""Where and how a denoiser is computed: device, offload, precision, costs."""
