"""A pair that others were folded into counts as one."""

from __future__ import annotations

from sketch_eval.policies.fold import Fold


class FoldUnweighted(Fold):
    """As `Fold`, but that a query sees one pair where several were folded: no log n in its logit."""

    name = "aggregate_unweighted"
    summary = "folds as `aggregate` does, but lets a query see one pair in place of several, without log n"
    weighs = False
