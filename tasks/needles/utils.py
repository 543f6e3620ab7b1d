"""The tasks' data and scores."""

from sketch_eval.text.needles import dataset, known_mean, process_results

__all__ = ["dataset", "known_mean", "process_results"]
