"""The scan on a CPU, compiled: `run` is the way in, `scan` the loop, and the other files its parts."""

from sketch_eval.execution.compiled.run import advance, serves

__all__ = ["advance", "serves"]
