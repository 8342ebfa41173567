"""Recipes: checked, forecast and run."""
