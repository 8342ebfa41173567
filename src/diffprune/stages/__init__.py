"""The stages: each a function on values (the Python API) and one on folders (the command line, recipes)."""
