"""What a cell's cache loses, layer by layer and head by head, and how well its ranking foresees what will be wanted."""

from sketch_eval.diagnose.run import diagnose

__all__ = ["diagnose"]
