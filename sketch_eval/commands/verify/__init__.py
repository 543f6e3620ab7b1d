"""`sketch-eval verify`: whether this machine computes what it should, how fast, and a file that says so."""

from sketch_eval.commands.verify.report import Report, verify
from sketch_eval.commands.verify.scores import write_known

__all__ = ["Report", "verify", "write_known"]
