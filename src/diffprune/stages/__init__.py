"""Stages: one module per command, with functions on values (Python) and on folders (command line, recipes)."""
