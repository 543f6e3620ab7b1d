"""Policies: how the pairs of a bounded store rank, and what becomes of the one that leaves (docs/design.md §2, §4).

A new one is its file here and its line in `registry`; docs/extending.md has the recipe.
"""

from sketch_eval.policies.base import Attention, Pairs, Place, Policy
from sketch_eval.policies.fate import Fate
from sketch_eval.policies.registry import FATES, POLICIES

__all__ = ["FATES", "POLICIES", "Attention", "Fate", "Pairs", "Place", "Policy"]
