# Everything a fresh machine needs is installed by these targets into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install -c constraints.txt
GPUS ?= 8

.PHONY: demo test lint bench regress golden clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "eplb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/installed

demo: $(VENV)/installed  ## plan a recorded sample and show the plan
	@mkdir -p build
	$(BIN)/eplb plan sample_loads/tiny-dsv3.npz --gpus $(GPUS) -o build/plan.json --force
	$(BIN)/eplb show build/plan.json

test: $(VENV)/installed-dev  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed-dev  ## the figures of docs/benchmarks.md, measured here
	$(BIN)/python -m benchmarks

regress: $(VENV)/installed-dev  ## plan every sample afresh: is any plan worse than tests/golden has it?
	$(BIN)/python -m tests.regress

golden: $(VENV)/installed-dev  ## rewrite tests/golden from what the program prints now
	$(BIN)/python -m pytest --golden -k golden
	$(BIN)/python -m tests.regress --golden

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
