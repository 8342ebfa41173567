"""Runs: run.json, atomic files, caches on disk, distributed ranks, progress bars and downloads."""
