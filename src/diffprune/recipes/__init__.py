"""Recipes: check, forecast and run all stages of one YAML file."""
