"""Every policy and every fate, by the name that a cell gives it.

The config's choices, its error messages, the documentation's tables, what tells computations apart and the matrices of
the tests are all made of these two.
"""

from __future__ import annotations

from sketch_eval.policies.adaptive import AdaptiveCountMin
from sketch_eval.policies.base import Policy
from sketch_eval.policies.clairvoyant import Clairvoyant
from sketch_eval.policies.counters import Exact, Last
from sketch_eval.policies.drop import Drop
from sketch_eval.policies.expected import ExpectedAttention
from sketch_eval.policies.fate import Fate
from sketch_eval.policies.fold import Fold
from sketch_eval.policies.fold_cost import FoldCost
from sketch_eval.policies.fold_near import FoldNear
from sketch_eval.policies.fold_turned import FoldTurned
from sketch_eval.policies.fold_unweighted import FoldUnweighted
from sketch_eval.policies.fold_values import FoldValues
from sketch_eval.policies.keydiff import KeyDifference
from sketch_eval.policies.knorm import KeyNorm
from sketch_eval.policies.learned import Learned
from sketch_eval.policies.random import Random
from sketch_eval.policies.recency import Recency
from sketch_eval.policies.sketched import SKETCHED
from sketch_eval.policies.snapkv import ObservationWindow
from sketch_eval.policies.surprisal import Surprisal
from sketch_eval.policies.vatp import ValueAware

_POLICIES: tuple[type[Policy], ...] = (
    *SKETCHED,
    AdaptiveCountMin,
    Exact,
    Last,
    Recency,
    Random,
    KeyNorm,
    ValueAware,
    ObservationWindow,
    ExpectedAttention,
    KeyDifference,
    FoldCost,
    Learned,
    Surprisal,
    Clairvoyant,
)
_FATES: tuple[type[Fate], ...] = (
    Drop,
    Fold,
    FoldTurned,
    FoldValues,
    FoldNear,
    FoldUnweighted,
)

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in _POLICIES}
"""By `importance`, in the order in which messages name them."""

FATES: dict[str, type[Fate]] = {fate.name: fate for fate in _FATES}
"""By `strategy`."""
