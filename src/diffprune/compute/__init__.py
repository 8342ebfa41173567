"""Where and how things are computed: device, precision, placement, cost."""
