"""`sketch-eval` on the command line."""
