# Two verbs do everything: `make quickstart` and `make test`. Both create the environment when it is missing.
#
#   VENV=dir      where the environment lives (default .venv)
#   PYTHON=python which interpreter creates it (default python3, at least 3.11)
#   TESTS="..."   arguments for pytest, e.g. TESTS="tests/keyekit/nn -x"
#   ONLY="..."    which experiments `make evidence` runs

VENV ?= .venv
PYTHON ?= python3
TESTS ?=
ONLY ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.keyekit-installed
EXTRAS := dev,docs,bench

.DEFAULT_GOAL := help
.PHONY: help install quickstart test format lint types imports tests docs bench evidence clean

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

install: $(STAMP) ## create the environment (the other verbs do it by themselves)

# The stamp is newer than pyproject.toml once everything is installed, so later calls start at once.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "keyekit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try PYTHON=python3.12"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv || \
	  echo "uv could not be installed; continuing with pip"
	@if $(BIN)/uv --version >/dev/null 2>&1; then \
	  $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[$(EXTRAS)]'; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'; \
	fi
	@touch $@

quickstart: $(STAMP) ## train the small model on real clips, evaluate it, print a table
	$(BIN)/keyekit quickstart

# Types and documentation take a minute or two of one core each, so they run side by side before the tests.
test: $(STAMP) ## everything that has to hold: lint, types, import contracts, docs, tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types imports docs
	@$(MAKE) --no-print-directory tests

format: $(STAMP) ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP) ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## static types
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP) ## import contracts between the packages
	PYTHONPATH=src:kernels $(BIN)/lint-imports

tests: $(STAMP) ## pytest, one process a core; a file stays in one process, slow files come first
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(TESTS)

docs: $(STAMP) ## strict build of the documentation into site/
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet

bench: $(STAMP) ## time keyekit beside named peers and write docs/benchmarks.md (minutes)
	mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-group-by=group --benchmark-max-time=3 \
	  --benchmark-columns=min,median,iqr,rounds --benchmark-json=.benchmarks/latest.json
	$(BIN)/python benchmarks/compare.py .benchmarks/latest.json --write docs/benchmarks.md

evidence: $(STAMP) ## run the experiments and write docs/evidence/ (hours; ONLY="quickstart-dsa pretraining" for some)
	$(BIN)/python docs/generate/evidence.py $(ONLY)

clean: ## remove what was built; the environment, data/ and runs/ stay
	rm -rf site build dist .pytest_cache .ruff_cache .import_linter_cache
	find src kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
