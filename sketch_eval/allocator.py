"""What the C library does with memory that torch frees on a CPU."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def keep_memory() -> None:
    """Have glibc keep what a pass frees for the next pass, which asks for as much; elsewhere this does nothing.

    By default it hands large blocks back to the system. To have them again, page by page, takes a CPU a quarter of a
    sweep (benchmarks/sweep.md) and half of a training step.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    _call("mallopt", mmap_max, 0)
    _call("mallopt", trim_threshold, 2**31 - 1)


def trim_memory() -> None:
    """Hand back what is free now: kept for ever, the gaps of the heap grow to many times what a step needs."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """Call a function of glibc's, where there is one."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), name)(*arguments)
