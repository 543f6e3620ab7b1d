"""Executions of the one step of docs/design.md §2. The oracle is the specification in code; the others are held to it.

An execution is a module with `serves(state, call)`, which says whether it can take a call, and `advance(state, call)`,
which takes it. A new one is its file and its line in `choose`.
"""

from sketch_eval.execution.choose import Execution, advance

__all__ = ["Execution", "advance"]
