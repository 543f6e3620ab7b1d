"""The scan on a GPU: `run` is the way in, `kernel` the loop, and `plan` what it serves and the sizes that it has."""

from sketch_eval.execution.triton.run import advance, serves, why_not

__all__ = ["advance", "serves", "why_not"]
