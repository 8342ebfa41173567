"""Public Python functions: one per command, with values or paths as arguments."""
