"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "FAILED", "skipped", "measured"]


@dataclass(frozen=True)
class Check:
    """A row of the report.

    Attributes:
        kind: `execution`, `score`, `speed` or `published`.
        name: what was looked at.
        expected: what it should be, for people; empty where nothing is expected.
        found: what it was, or why it was not looked at.
        verdict: `measured` where there is nothing that it should be.
    """

    kind: str
    name: str
    expected: str
    found: str
    verdict: Verdict
