"""sketch_eval."""
