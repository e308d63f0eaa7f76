"""Recipes: what is trained and how, as data."""
