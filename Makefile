# `make demo` and `make test` need Python 3.11 or newer, make and a package index; everything they install goes into .venv.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BOOKS ?= ../shared/data/english,../shared/data/books
KEPT_OUT ?= a-short-history-of-the-world.txt,sailing-alone-around-the-world.txt,the-age-of-innocence.txt
PY := .venv/bin/python
SKETCH := .venv/bin/sketch-eval
STAMP := .venv/.installed

.PHONY: install test test-slow demo train tables readme pages docs wheel bench lint format

install: $(STAMP)

# The start-up files are copied into site-packages even by an editable install, hence their place among what it depends on.
$(STAMP): pyproject.toml constraints.txt $(wildcard sketch_eval/startup/*.p*)
	@test -x .venv/bin/pip || test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@echo "installing the pinned environment into .venv (some minutes, once)"
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev,gpu]' --constraint constraints.txt
	@touch $@

# Two processes with a thread each, which on two cores take the time of one with two threads, and half of it elsewhere.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope

test-slow: $(STAMP)
	$(PY) -m pytest -m slow

demo: $(STAMP)
	$(SKETCH) sweep demo --output runs/demo

# The bundled models once more: `bundled` from what is in the package, `bundled-rotary` from nothing, hours each on 2 cores.
# BOOKS are folders of works as plain text, with commas between them; KEPT_OUT are files of them that the held-out loss is
# taken on. Both go on where they were stopped. The models' cards say how the ones in the package were made.
train: $(STAMP)
	$(PY) -m sketch_eval.train --start sketch_eval/bundled --books $(BOOKS) --kept-out "$(KEPT_OUT)" --book-share 0.75 \
		--lengths 0:1024 --drills 0:0.15 --steps 2000 --cooldown 800 --out runs/gpt2
	$(PY) -m sketch_eval.train --books $(BOOKS) --kept-out "$(KEPT_OUT)" --book-share 0.7 --width 256 --layers 5 --shape llama \
		--heads 8 --kv-heads 2 --positions 4096 --lengths 0:128,120:256,320:512,600:1024,1050:2048,1320:4096 \
		--drills 0:0.5,320:0.3,1000:0.25 --steps 1500 --cooldown 460 --rate 3e-3 --out runs/rotary

# Every committed table, anew: some twelve hours of one core; OMP_NUM_THREADS=1 make -j2 tables takes half of that and scores
# the same, bit for bit. WikiText-2 and LAMBADA come from the hub, or from a cache of it: HF_HOME=folder. Three works of
# English prose have to lie in runs/works, as docs/sweeps.md names them.
tables: $(addprefix table-,$(filter-out README.md,$(notdir $(wildcard results/*))))

table-%: $(STAMP)
	$(SKETCH) sweep $* --output results/$*

# A page for each committed table under runs/pages: what the workflow `pages` publishes.
pages: $(STAMP)
	rm -rf runs/pages && mkdir -p runs/pages
	for folder in results/*/; do name=$$(basename $$folder) && $(SKETCH) page $$folder --output runs/pages/$$name && \
		echo "<p><a href=\"$$name/leaderboard.html\">$$name</a></p>" >> runs/pages/index.html || exit 1; done

# The numbers in README.md and docs/findings.md, and the picture, out of results/. After `make tables`.
readme: $(STAMP)
	$(PY) docs/tools/readme.py

# The documents, the tables and the API as a site in runs/site. A link that leads nowhere ends it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# The wheel, tried in an environment that has nothing else: lm_eval has to find the models and the tasks in it.
wheel: $(STAMP)
	rm -rf runs/wheel && $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir runs/wheel .
	$(PY) -m venv runs/wheel/clean
	runs/wheel/clean/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt runs/wheel/*.whl
	cd runs/wheel && clean/bin/lm_eval validate --tasks stdlib_text,recall,sketch_quick && clean/bin/lm_eval run \
		--model sketch_gpt2 --model_args pretrained=bundled,max_cache_size=64 --tasks recall_depth_75 --limit 2 && \
		clean/bin/sketch-eval plan demo

bench: $(STAMP)
	$(PY) benchmarks/speed.py

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
