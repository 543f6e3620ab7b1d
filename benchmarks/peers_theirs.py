"""What `peers.py` runs in the environment of the other systems, and how a text is read token by token in both."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache

Texts = list[list[int]]
Scored = tuple[float, int]
"""Log-likelihood in nats of a text's tokens after its first, and most pairs that a layer held after any token."""


def likelihood(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Of tokens `[1, n]` after the first, by the logits `[1, n, vocabulary]` of one pass."""
    return float(logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, 1:, None]).double().sum())


def by_token(model: Any, tokens: torch.Tensor, cache: Any) -> Scored:
    """A text token by token. Positions are said each time: a cache that drops pairs loses count of them."""
    logits, most = [], 0
    for at in range(tokens.shape[1]):
        now = torch.tensor([at])
        place = {"position_ids": now[None]}
        if "cache_position" in model.model.layers[0].self_attn.forward.__code__.co_varnames:
            place["cache_position"] = now
        logits.append(model(tokens[:, at : at + 1], past_key_values=cache, **place).logits)
        most = max(most, held(cache))
    return likelihood(torch.cat(logits, 1), tokens), most


def held(cache: Any) -> int:
    """Most pairs that a layer of a cache holds: those in full precision, and quantised ones where it counts them."""
    if hasattr(cache.layers[0], "state"):  # Ours, which has a free slot.
        return max(int((layer.state.positions >= 0).sum(1).max()) for layer in cache.layers)
    whole = [layer.keys.shape[-2] for layer in cache.layers if layer.keys is not None and layer.keys.dim() == 4]
    counted = [getattr(layer, "cumulative_length", 0) for layer in cache.layers if hasattr(layer, "_quantized_keys")]
    return max([0, *whole, *counted])


def theirs(pretrained: str, cap: int) -> dict[str, Callable[[torch.Tensor], Scored]]:
    """What the other environment runs."""
    import kvpress
    from transformers.cache_utils import DynamicSlidingWindowLayer, QuantizedCache

    model = AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32).eval()
    layers = model.config.num_hidden_layers

    def press_by_token(press: Any) -> Callable[[torch.Tensor], Scored]:
        def score(tokens: torch.Tensor) -> Scored:
            decoding = kvpress.DecodingPress(base_press=press(), compression_interval=1, target_size=cap)
            with decoding(model):
                return by_token(model, tokens, DynamicCache())

        return score

    def press_at_once(tokens: torch.Tensor) -> Scored:
        cache = DynamicCache()
        with kvpress.KnormPress(compression_ratio=max(1 - cap / tokens.shape[1], 0.0))(model):
            return likelihood(model(tokens, past_key_values=cache).logits, tokens), held(cache)

    def window() -> Cache:
        # It holds one pair less than its window, which the token itself completes.
        return Cache(layers=[DynamicSlidingWindowLayer(sliding_window=cap + 1) for _ in range(layers)])

    return {
        "transformers, full cache, token by token": lambda tokens: by_token(model, tokens, DynamicCache()),
        "transformers, sliding window, token by token": lambda tokens: by_token(model, tokens, window()),
        "transformers, 4 bits (quanto, newest 128 whole), token by token": lambda tokens: by_token(
            model, tokens, QuantizedCache("quanto", model.config, nbits=4, q_group_size=32)
        ),
        "transformers, 2 bits (quanto, newest 128 whole), token by token": lambda tokens: by_token(
            model, tokens, QuantizedCache("quanto", model.config, nbits=2, q_group_size=32)
        ),
        "kvpress StreamingLLM, decoding, token by token": press_by_token(kvpress.StreamingLLMPress),
        "kvpress Knorm, decoding, token by token": press_by_token(kvpress.KnormPress),
        "kvpress TOVA, decoding, token by token": press_by_token(kvpress.TOVAPress),
        "kvpress Knorm, one scoring pass": press_at_once,
    }


@torch.no_grad()
def measure(ways: dict[str, Callable[[torch.Tensor], Scored]], texts: Texts) -> dict[str, Any]:
    """By way: the likelihood of each text, most pairs held, and seconds for all the texts; or why it failed."""
    found: dict[str, Any] = {}
    for name, way in ways.items():
        print(name, file=sys.stderr, flush=True)
        try:
            way(torch.tensor([texts[0][:20]]))
            start = time.perf_counter()
            scored = [way(torch.tensor([text])) for text in texts]
        except Exception as error:  # Another system's fault is a line of the table.
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            continue
        seconds = time.perf_counter() - start
        found[name] = {"likelihoods": [one for one, _ in scored], "held": max(most for _, most in scored)}
        found[name]["seconds"] = seconds
    return found


def versions() -> dict[str, str]:
    """Of what decides a number of the other environment, as far as it is installed here."""
    names = ("torch", "transformers", "kvpress", "optimum-quanto")
    return {name: importlib.metadata.version(name) for name in names if _installed(name)}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({"versions": versions(), "found": measure(theirs(job["pretrained"], job["cap"]), job["texts"])}))
