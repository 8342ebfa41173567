"""What every run needs: run.json, atomic files, caches, distributed ranks, progress, downloads."""
