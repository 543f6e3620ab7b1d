"""The trainer of the bundled model: `python -m sketch_eval.train --help`."""
