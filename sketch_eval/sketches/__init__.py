"""Probabilistic sketches of weighted streams, as batched tensors. They stand alone."""

from sketch_eval.sketches.base import Sketch
from sketch_eval.sketches.count_min import CountMinSketch
from sketch_eval.sketches.count_sketch import CountSketch
from sketch_eval.sketches.race import RaceSketch

SKETCHES: dict[str, type[Sketch]] = {kind.name: kind for kind in (CountMinSketch, CountSketch, RaceSketch)}

__all__ = ["SKETCHES", "CountMinSketch", "CountSketch", "RaceSketch", "Sketch"]
