# Each target makes its own virtual environment first, once. `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# two processes; the tests of a file share what it set up
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install test test-fast test-all coverage types demo lint format wheel

help:
	@echo "make test        every test but the slow ones"
	@echo "make test-fast   without the stock commands"
	@echo "make test-all    everything"
	@echo "make coverage    make test, and the share of the lines that it runs"
	@echo "make types       mypy over the whole package"
	@echo "make demo        one method end to end on data it makes itself; leaves demo/"
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
	$(PYTEST) -m "not slow and not commands"

test-all: $(READY)
	$(PYTEST)

coverage: $(READY)
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered

types: $(READY)
	.ci/types

demo: $(READY)
	$(BIN)/nnunet-invariance demo --out demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
