"""Fitting of the ranking of `importance=learned` to a model: `python -m sketch_eval.calibrate`."""
