"""From a grid of cells to finished runs on disk; `sketch-eval sweep` is its command line."""
