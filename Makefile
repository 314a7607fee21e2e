# Bloomfarm. `make help` lists what there is. Everything lives in .venv, which is made on first use and again when the
# pins change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt
CHECKOV := checkov==3.3.30

.DEFAULT_GOAL := help
.PHONY: help demo up test check fast bench screenshots chaos docs clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run  ## start a farm, answer the bundled prompts, show the answers, stop
	@$(BIN)/farm demo

up: $(VENV)/.run  ## start a farm on this machine and keep it running
	@$(BIN)/farm up

check: $(VENV)/.dev  ## what every commit passes: style, types, floors, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m fast

test: check $(VENV)/.checkov  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not fast and not alone"
	$(BIN)/python -m pytest -m alone

bench: $(VENV)/.bench  ## the benchmarks, each with its baselines; under ten minutes on two idle cores
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.submit
	$(BIN)/python -m benchmarks.rest
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.compare --docs

screenshots: $(VENV)/.pictures  ## the pictures of README and docs, of a farm that runs; needs Chromium
	$(BIN)/python -m benchmarks.pictures

chaos: $(VENV)/.dev  ## break a farm in every way for a quarter of an hour, and see that it keeps docs/guarantees.md
	$(BIN)/python -m tests.chaos --all

docs: $(VENV)/.dev  ## build the documentation's site into build/docs/site; needs no network
	$(BIN)/python -m docs.site

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(PINS) | $(BIN)/python
	@echo "installing the farm into $(VENV); the first time takes some minutes"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[worker,api,flower,local]'
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	@echo "installing the farm and its tools into $(VENV); the first time takes some minutes"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.run

# Its pins and ours exclude each other, so it lives apart. tests/conftest.py finds it there.
$(VENV)/.checkov: Makefile | $(BIN)/python
	@echo "installing checkov into $(VENV)/checkov"
	$(PYTHON) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/python -m pip --disable-pip-version-check install --quiet $(CHECKOV)
	@touch $@

$(VENV)/.pictures: $(VENV)/.dev
	@echo "installing what draws charts into $(VENV)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,pictures]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the engines to compare with into $(VENV)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@
