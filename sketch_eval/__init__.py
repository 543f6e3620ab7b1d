"""What a language model loses when its KV cache is held to a bound by a sketch, measured in lm-eval."""

from sketch_eval.errors import UsageError

__version__ = "0.2.0"

__all__ = ["UsageError", "__version__"]
