"""Grids of cells: what a sweep is asked to run, and which cells are one computation."""
