"""Searches with Optuna: recipes for each cell, or a walk over blocks."""
