"""Denoisers: finding, loading, describing, resizing and saving them."""
