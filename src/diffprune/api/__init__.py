"""The public functions: each command of the command line as a function of values or paths."""
