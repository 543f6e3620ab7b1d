"""`python -m sketch_eval.train.probe [FOLDER]`: how well a model looks back over its whole length, with the full cache.

Each probe fills the given length and asks once, at the end; a probe is right where every token of the answer is the
model's first choice. The rows are fresh: no seed is one of the trainer's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from sketch_eval import bundled
from sketch_eval.text.recall import code_question, digits, filler, pairs, passkey_question, segment, units
from sketch_eval.text.words import ANSWERS, KEYS, PEOPLE, PLACES, QUALITIES, THINGS, between, draw, pick

Probe = Callable[[Random, int], tuple[str, str]]  # (rng, units) to (prompt, answer)


def buried(rng: Random, length: int, facts: list[str], question: str) -> str:
    """Filler with the facts at random places, and the question: ``length`` units at most."""
    body = filler(rng, length - units(" ".join([*facts, question])))
    for fact in facts:
        body.insert(between(rng, 0, len(body)), fact)
    return " ".join([*body, question])


def code_word(rng: Random, length: int, needles: int = 1) -> tuple[str, str]:
    """One of ``needles`` code words."""
    known = list(zip(draw(rng, PLACES, needles), draw(rng, ANSWERS, needles), strict=True))
    facts = [f"{code_question(place)} {answer}." for place, answer in known]
    return buried(rng, length, facts, code_question(known[0][0])), " " + known[0][1]


def eight_code_words(rng: Random, length: int) -> tuple[str, str]:
    """One of eight code words."""
    return code_word(rng, length, 8)


def pass_key(rng: Random, length: int) -> tuple[str, str]:
    """Five digits."""
    key = digits(rng)
    return buried(rng, length - 6, [f"{passkey_question()} {key}."], passkey_question()), " " + key


def key_value(rng: Random, length: int) -> tuple[str, str]:
    """The value of one key of a list of ``key: value`` lines, as long as there are keys for."""
    known = pairs(rng, min((length - 3) // 4, len(KEYS)))
    key, value = pick(rng, known)
    return "".join(f"{key}: {value}\n" for key, value in known) + f"{key}:", " " + value


def two_word_key(rng: Random, length: int) -> tuple[str, str]:
    """The value of one key of a list that fills the length, whose keys are of two words."""
    keys = [f"{first} {second}" for first in QUALITIES for second in PLACES + PEOPLE + THINGS]
    known = [(key, pick(rng, ANSWERS)) for key in draw(rng, keys, (length - 4) // 5)]
    key, value = pick(rng, known)
    return "".join(f"{key}: {value}\n" for key, value in known) + f"{key}:", " " + value


def induction(rng: Random, length: int) -> tuple[str, str]:
    """The last 20 words of a random segment's second copy; the copies are half of the length each."""
    words = segment(rng, length // 2 - 1)
    return " " + " ".join(words + words[:-20]), " " + " ".join(words[-20:])


PROBES: dict[str, Probe] = {
    "one code word": code_word,
    "one of eight code words": eight_code_words,
    "pass key": pass_key,
    "key-value list": key_value,
    "list of two-word keys": two_word_key,
    "induction, 20 words": induction,
}


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, probe: Probe, length: int, rows: int = 100
) -> tuple[float, float, int]:
    """(share of answers wholly right, share of answer tokens right, tokens of the longest row).

    A row that is too long for the model, by another tokenizer than the bundled ones, loses its beginning.
    """
    whole = right = asked = longest = 0
    for number in range(rows):
        prompt, answer = probe(Random(f"probe {probe.__name__} {length} {number}"), length)
        ids, wanted = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
        ids = ids[-(model.config.max_position_embeddings - len(wanted) + 1) :]
        row = torch.tensor([ids + wanted[:-1]], device=model.device)
        guess = model(row, use_cache=False).logits[0, len(ids) - 1 :].argmax(-1).tolist()
        hits = sum(one == other for one, other in zip(guess, wanted, strict=True))
        whole, right, asked = whole + (hits == len(wanted)), right + hits, asked + len(wanted)
        longest = max(longest, len(ids) + len(wanted))
    return whole / rows, right / asked, longest


def main(arguments: list[str]) -> None:
    """Print a table of every probe at about a quarter, a half and the whole of the model's positions."""
    folder = bundled.resolve(arguments[0]) if arguments else bundled.path()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    positions = model.config.max_position_embeddings
    print("| probe | tokens, at most | answers wholly right | answer tokens right |\n| --- | --- | --- | --- |")
    for name, probe in PROBES.items():
        for length in (positions * 15 // (16 * part) for part in (4, 2, 1)):
            whole, tokens, longest = accuracy(model, tokenizer, probe, length)
            print(f"| {name} | {longest} | {whole:.1%} | {tokens:.1%} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
