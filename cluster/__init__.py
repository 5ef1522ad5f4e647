"""Clusters: jobs, and what is wrong with an installation."""
