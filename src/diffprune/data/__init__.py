"""Images: sources, preprocessing, labels, and archives of published data sets."""
