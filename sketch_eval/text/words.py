"""The word lists of the generated text, and random draws from them that are the same on every platform.

Every word is one token of the bundled tokenizer and, after a space, one token of GPT-2's: a document has about as many
tokens as words and punctuation marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

ANSWERS = (
    "amber apple arrow basket bell bird blanket boat bottle bread bronze butter button candle carpet cherry "
    "chicken clock cloud coat coffee copper cotton cow crystal diamond dragon eagle engine feather fish flower "
    "fork fox ghost gold guitar hammer hat honey horse ivory jacket lemon lion marble mirror monkey moon "
    "mouse needle orange paper pearl piano pig pocket rabbit ribbon ring rose salt shark silver snake "
    "soap spider steel sugar sword tiger turkey umbrella velvet violin wheel wolf wool"
).split()

PLACES = (
    "airport bank beach bridge camp castle cave church city college court dock factory farm forest garden gate "
    "hall harbor hill hospital hotel house inn island kitchen lake library market mill mine mountain museum "
    "office palace park port prison ranch river road school shop square stable stadium station studio temple "
    "theater tower town tunnel valley village yard"
).split()

PEOPLE = (
    "actor artist baker boy brother captain child clerk cook dancer doctor driver farmer friend girl guard guest "
    "hunter judge king lady lawyer man mother neighbor nurse officer painter pilot poet priest prince queen "
    "rider sailor singer sister soldier student teacher thief uncle visitor waiter woman writer"
).split()

THINGS = (
    "bag ball bed bench board book box brush card chair coin cup curtain desk dish door drum flag floor "
    "glass key lamp letter lock map medal net note pen photo picture plate pole pot rope seat shelf "
    "shirt shoe sign stone stove string table tent ticket tool toy truck wall window"
).split()

QUALITIES = (
    "angry big brave bright broken busy calm clean clever cold dark deep dirty dry empty fair famous fast "
    "fresh gentle happy heavy honest hungry kind large late lazy light little lonely loud lucky narrow new "
    "nice old patient plain poor proud quick quiet rich sad sharp short shy slow small soft strange strong tall "
    "thin tired warm wet wide wild wise young"
).split()

DEEDS = (
    "admired bought brought built carried cleaned closed counted covered drew dropped fixed forgot found held hid "
    "kept left liked lost made moved needed noticed opened painted passed picked pulled pushed raised reached "
    "saved sold studied threw took touched turned used wanted washed watched"
).split()

TIMES = "morning evening night week month summer winter spring autumn year afternoon weekend".split()

KEYS = PLACES + PEOPLE + THINGS + QUALITIES + TIMES
"""Words that name something but never answer: the keys of key-value lists, each once."""

FILLER = KEYS + DEEDS


def pick(rng: Random, items: Sequence[T]) -> T:
    """One item. Only ``Random.random`` is used: the one draw whose results Python keeps from version to version."""
    return items[int(rng.random() * len(items))]


def between(rng: Random, low: int, high: int) -> int:
    """An integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def draw(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """``count`` different items (by place, not by value) in random order; count is at most len(items)."""
    pool = list(items)
    for at in range(count):
        other = between(rng, at, len(pool) - 1)
        pool[at], pool[other] = pool[other], pool[at]
    return pool[:count]


def sentence(rng: Random) -> str:
    """One filler sentence of simple English that states no code word, pass key or list entry."""
    form = between(rng, 0, 5)
    who, other = draw(rng, PEOPLE, 2)
    what, where, how, when = pick(rng, THINGS), pick(rng, PLACES), pick(rng, QUALITIES), pick(rng, TIMES)
    did, also = draw(rng, DEEDS, 2)
    if form == 0:
        return f"The {how} {who} {did} the {what} near the {where}."
    if form == 1:
        return f"One {when} the {who} {did} a {how} {what} and {also} it."
    if form == 2:
        return f"The {who} and the {other} {did} the {what} every {when}."
    if form == 3:
        return f"In the {where} a {who} {did} the {how} {what}."
    if form == 4:
        return f"Every {when} the {how} {who} {did} a {what} for the {other}."
    return f"The {what} was {how}, so the {who} {did} it at the {where}."
