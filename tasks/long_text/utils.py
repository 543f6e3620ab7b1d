"""The tasks' data, requests and scores."""

from sketch_eval.text.long_text import dataset, process_results
from sketch_eval.text.spans import SpansTask

__all__ = ["SpansTask", "dataset", "process_results"]
