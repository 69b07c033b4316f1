# `make run` and `make test` need nothing but this clone, Python >= 3.11, and a network for the first installation.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: help run test bench lint clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

run: $(INSTALLED)  ## execute every notebook into runs/ and write runs/index.html
	$(PY) -m helpers run

test: $(INSTALLED)  ## style, tests, and every notebook compared with its stored outputs (a quarter of an hour)
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs --durations=15 -n 3 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 --durations=5 -n 2 --dist loadfile notebooks

bench: $(INSTALLED)  ## speed against plain reference implementations
	$(PY) -m pytest --benchmark-columns=median,iqr,rounds -s tests/bench_*.py

lint: $(INSTALLED)  ## style only
	$(PY) -m ruff check .

clean:  ## remove what is generated, the environment too
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Compiled modules are kept, also where Python is told to write none: hundreds of processes would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

# uv installs in half a minute what takes pip several; where it cannot be had, pip does it.
$(INSTALLED): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Sightline needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "no virtual environment could be made: install python3-venv (Debian, Ubuntu), then run make again"; exit 1; }
	@if $(PY) -m pip install --quiet uv; \
		then $(PY) -m uv pip install --python $(PY) -r requirements.txt -c constraints.txt; \
		else $(PY) -m pip install -r requirements.txt -c constraints.txt; fi
	@touch $@
