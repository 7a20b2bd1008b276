"""Searching settings: the same budget, and points in the same order, for every method."""
