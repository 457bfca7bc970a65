# Every target creates the virtual environment .venv first, if needed. `make PYTHON=python3.12 test` selects the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes; all tests of a file run in the same one, because they share fixtures. Python may write byte code, so that
# the processes that the tests start do not compile the package again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install test test-fast test-all coverage types docs demo lint format wheel dist

help:
	@echo "make test        every test except the slow ones"
	@echo "make test-fast   only short tests, without a data set and without commands of nnU-Net"
	@echo "make test-all    every test"
	@echo "make coverage    make test, with line coverage"
	@echo "make types       mypy on the whole package"
	@echo "make docs        the documentation as a site in site/; a broken link is an error"
	@echo "make demo        one method end to end on generated data; writes demo/"
	@echo "make dist        source distribution and wheel, checked for the package index"
	@echo "make lint | format | wheel"

install: $(READY)

$(READY): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@

test: $(READY)
	$(PYTEST) -m "not slow"

test-fast: $(READY)
	$(PYTEST) -m "not slow and not commands and not integration"

test-all: $(READY)
	$(PYTEST)

coverage: $(READY)
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

types: $(READY)
	.ci/types

docs: $(READY)
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

demo: $(READY)
	$(BIN)/nnunet-invariance demo --out demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
