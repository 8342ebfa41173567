"""Tests of the option sets and the recipe."""
