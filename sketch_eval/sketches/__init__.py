"""Probabilistic sketches of weighted streams, as batched tensors. They stand alone."""

from sketch_eval.sketches.base import Sketch
from sketch_eval.sketches.count_min import CountMinSketch
from sketch_eval.sketches.count_sketch import CountSketch
from sketch_eval.sketches.race import RaceSketch

__all__ = ["CountMinSketch", "CountSketch", "RaceSketch", "Sketch"]
