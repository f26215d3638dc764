# Every target sets up what it needs, in .venv, on a machine that has nothing but Python 3.11 or later.
# Another Python: `make test PYTHON=python3.12`. With pip although uv is there: `make test UV=`.

PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help test test-faults check fmt mutants quickstart quickstart-check

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One worker a core, each with one thread: tests are many and small.
test: $(READY) ## Run the tests and the examples in docstrings; more for pytest in ARGS, e.g. ARGS="-m slow -k replay"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

test-faults: $(READY) ## Kill runs at any instant, resume them, and compare the bytes; some minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/test_faults.py tests/test_resume.py tests/test_snapshot.py $(ARGS)

check: $(READY) ## Look for what is wrong without running it: format, lint, types, imports between rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(READY) ## Format the code and mend what can be mended mechanically
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

mutants: $(READY) ## Break the code on purpose, one place at a time, and see that the tests notice
	$(BIN)/python tests/mutants.py $(ARGS)

quickstart: $(READY) ## Watch a tiny model get better by forward passes alone; more for it in ARGS, e.g. ARGS="--seed 1"
	$(BIN)/zoreward quickstart $(ARGS)

quickstart-check: $(READY) ## See that it does so with seeds 0 to 4
	$(BIN)/python benchmarks/quickstart/check.py $(ARGS)

# Set up again only when pyproject.toml has changed.
$(READY): pyproject.toml
ifeq ($(UV),)
	$(PYTHON) -m venv $(VENV)
	# Older pips do not know dependency groups.
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --progress-bar off --editable . --group dev
else
	$(UV) venv --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --python $(BIN)/python --editable . --group dev
endif
	@touch $@
