"""Images: where they come from, how they are prepared, and calibration batches of them."""
