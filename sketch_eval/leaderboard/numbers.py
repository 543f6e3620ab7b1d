"""How numbers are written: in the tables, on the page, in its plots and in the terminal."""

from __future__ import annotations

import math

LARGE = 200
"""Percent from which a difference is said as a ratio: 1,900% more is 20 times as much."""


def percent(share: float) -> str:
    """A share in percent, in which little is not nothing and much is not all."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def sign(unit: str) -> str:
    """What stands behind a difference: `%`, or ` pt` for points."""
    return "%" if unit == "percent" else " pt"


def short(value: float) -> str:
    """A score in three digits or so; a dash for what is no number."""
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def scored(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A score with its interval, where there is one."""
    return short(value) + ("" if math.isnan(low) else f" [{short(low)}, {short(high)}]")


def change(unit: str, value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A difference with its interval, where there is one; as a ratio where it is large; empty where it is not known."""
    if math.isnan(value):
        return ""
    if math.isnan(low):
        return f"{value:+.1f}{sign(unit)}"
    if unit == "points" or max(abs(number) for number in (value, low, high)) < LARGE:
        return f"{value:+.1f}{sign(unit)} [{low:+.1f}, {high:+.1f}]"
    return "{}× [{}, {}]".format(*(short(1 + number / 100) for number in (value, low, high)))


def brief(unit: str, value: float) -> str:
    """A difference where there is room for one number."""
    if math.isnan(value):
        return ""
    return f"{short(1 + value / 100)}×" if unit == "percent" and abs(value) >= LARGE else f"{value:+.1f}{sign(unit)}"


def way(share: float, low: float = math.nan, high: float = math.nan) -> str:
    """A share of the way with its interval, where there is one; empty where it is not known."""
    if math.isnan(share):
        return ""
    return f"{share:.0%}" + ("" if math.isnan(low) else f" [{low:.0%}, {high:.0%}]")


def kib(count: float) -> str:
    """Bytes in KiB."""
    return f"{count / 1024:,.1f}"


def size(count: float) -> str:
    """Bytes in whole KiB, with the unit; parts of a KiB only where there is less than ten."""
    size = count / 1024
    return f"{size:,.0f} KiB" if abs(size) >= 10 or size == int(size) else f"{size:,.1f} KiB"


def more(count: float) -> str:
    """A difference of bytes in KiB, without the unit."""
    size = count / 1024
    return f"{size:+,.0f}" if abs(size) >= 10 or size == int(size) else f"{size:+,.1f}"


def whole(value: float) -> str:
    """A number as it was given, whole ones without a point; nothing for what is no number."""
    return "" if math.isnan(value) else f"{value:g}"
