"""Puts this folder on the import path, so that test modules (and Ray workers) share helpers."""
