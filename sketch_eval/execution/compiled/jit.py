"""How the compiled loop is compiled: what its parts share.

Numba keeps a function's machine code on disk by the function's own file and name, and by the constants it closes over.
The loop is made of several files, so a digest of them all is in its name: after a change of any it is compiled anew,
and only the first process of a machine compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np

F = np.float32

# Not "reassoc": with it, code just compiled and the same code from the disk sum in other orders, and the first process
# of a machine scores otherwise than all that follow.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}


def compiled(function: Callable[..., Any]) -> Any:
    """A part of the loop, which is kept on disk as part of it."""
    return numba.njit(**OPTIONS)(function)


def exactly(function: Callable[..., Any]) -> Any:
    """As `compiled`, with every operation rounded by itself: where a tie that goes the other way is another pair."""
    return numba.njit(**OPTIONS | {"fastmath": False})(function)


def kept(signature: Any, name: str) -> Callable[[Callable[..., Any]], Any]:
    """The loop itself, on disk where there is a place for it: a read-only install with no home compiles each time.

    Args:
        signature: of the function, in Numba's types.
        name: another one for each function and the constants that tell it apart. Numba has an index for each name, and
            two processes that write to one index at once can leave the code of the one under the key of the other.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        function.__qualname__ = f"{name}_{VERSION:x}"
        try:
            return numba.njit(signature, cache=True, **OPTIONS)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            return numba.njit(signature, **OPTIONS)(function)

    return compile_it


def _version() -> int:
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "big")


VERSION = _version()
"""Another number after any change of the files of this folder. It is taken before the others are imported: a process
that began before a change compiles what it has read, and must not keep it under the name of what stands there now."""
