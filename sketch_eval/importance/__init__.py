"""Importance sources: what ranks the pairs of a bounded store (DESIGN §4)."""

from sketch_eval.importance.base import Importance
from sketch_eval.importance.fixed import KeyNorm, Random, Recency
from sketch_eval.importance.scored import Exact, Last
from sketch_eval.importance.sketched import CountMin, CountSketched, Race

SOURCES: dict[str, type[Importance]] = {
    source.name: source for source in (CountMin, CountSketched, Race, Exact, Last, Recency, Random, KeyNorm)
}

__all__ = ["SOURCES", "Importance"]
