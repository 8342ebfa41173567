"""What every run needs: run.json, atomic files, caches, several processes, progress, downloads."""
