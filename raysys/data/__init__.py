"""Data sets: Arrow schemas, the data set folder, histories by pointer, features and batches.

Shape vocabulary used in every docstring of the package: B batch (impressions), L history,
C candidates, D width, F features, P prototypes, E entities, K retrieved, T tokens.
"""
