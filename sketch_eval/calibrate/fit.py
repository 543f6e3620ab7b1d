"""The regression: how much mass is still to come to a pair, from what is known of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from sklearn.linear_model import PoissonRegressor
from transformers import PreTrainedModel

from sketch_eval.calibrate.observe import observe

YOUNGEST = 16
"""Queries that a pair has met at least: younger ones are protected in any sensible cell."""
MOMENTS = 6
"""Looks at each text."""
PAIRS = 64
"""Pairs drawn at each look, for each head."""
PENALTY = 1e-6
"""The regression's penalty on squares: next to none, so that features that are alike share their weight."""


def fit(model: PreTrainedModel, texts: Iterable[torch.Tensor], seed: int) -> tuple[list[list[list[float]]], float]:
    """Coefficients by layer and key/value head, and the share of the deviance that they explain, over all heads.

    Args:
        model: a model on which `attention.enable` was called.
        texts: ids, int64 `[tokens]` each.
        seed: of the moments and pairs that are drawn.
    """
    random = np.random.default_rng(seed)
    known: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    rates: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    for tokens in texts:
        first, last = len(tokens) // 8 + YOUNGEST, len(tokens) * 7 // 8
        for moment in observe(model, tokens, sorted(random.integers(first, last, MOMENTS).tolist())):
            old = moment.known.shape[1] - YOUNGEST
            for head in range(len(moment.known)):
                drawn = random.choice(old, min(PAIRS, old), replace=False)
                known[moment.layer, head].append(moment.known[head, drawn].double().numpy())
                # By query to come, so that moments early and late in a text say the same.
                rates[moment.layer, head].append(moment.follows[head, drawn].double().numpy() / moment.left)
    layers: defaultdict[int, list[list[float]]] = defaultdict(list)
    explained = []
    for (layer, head), parts in sorted(known.items()):
        x, y = np.concatenate(parts), np.concatenate(rates[layer, head])
        found = PoissonRegressor(alpha=PENALTY, fit_intercept=False, max_iter=1000, tol=1e-7).fit(x, y / y.mean())
        explained.append(found.score(x, y / y.mean()))
        layers[layer].append([float(weight) for weight in found.coef_])
    return [layers[layer] for layer in sorted(layers)], float(np.mean(explained))
