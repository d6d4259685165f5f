# One command each: `make demo` runs the main job on bundled data, `make test` passes the tests.
# Both do all of their set-up on a fresh machine: virtual environment, CPU torch, dependencies.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: demo test lint types bench clean

demo: $(VENV)/.run
	$(BIN)/layerscope demo --out out/demo

# two processes with one thread each: more threads than cores make the suite several times slower
test: $(VENV)/.dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/probe.py
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/encrypted.py
	$(BIN)/python benchmarks/medic.py
	$(BIN)/python benchmarks/focus.py

# torch goes in first, and constraints.txt holds it in place through every later step.
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

$(VENV)/.torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "layerscope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) torch
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[dev,zoo]"
	touch $(VENV)/.run $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
