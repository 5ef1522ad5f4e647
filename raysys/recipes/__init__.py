"""Recipes: one readable program per job, a frozen config and a function that runs it."""
