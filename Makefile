# Every target creates the virtual environment .venv first, if needed. `make PYTHON=python3.12 test` selects the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes; all tests of a file run in the same one, because they share fixtures. Python may write byte code, so that
# the processes that the tests start do not compile the package again. glibc keeps freed memory: to return it after every
# step and request it again takes up to a fifth of the time of a training.
MEMORY := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(MEMORY) \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Acceptance run on a GPU. WHEELS holds the packages for a machine without network; PYTHON is the interpreter that runs it there.
WHEELS := wheels
GPU_PYTHON_VERSION ?= 3.12
GPU := $(if $(wildcard $(WHEELS)/*.whl),.gpu/bin,$(BIN))

.PHONY: help install test test-fast test-all coverage types docs demo lint format wheel dist gpu gpu-wheels gpu-weights

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
	@echo "make gpu         acceptance run on a GPU, below eight minutes; writes benchmarks/results/gpu.json"
	@echo "make gpu-wheels  download the packages that make gpu installs on a machine without network"
	@echo "make gpu-weights eight minutes of pre-training for the default weights; continues at the next call"

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

# PyTorch and the other large packages come from the interpreter, unless they were downloaded too.
.gpu/.ready: $(wildcard $(WHEELS)/*.whl)
	$(PYTHON) -m venv --system-site-packages .gpu
	.gpu/bin/python -m pip install --quiet --no-index --no-deps $(WHEELS)/*.whl
	@touch $@

gpu: $(if $(wildcard $(WHEELS)/*.whl),.gpu/.ready,$(READY))
	$(GPU)/python -m benchmarks.gpu.acceptance; status=$$?; $(GPU)/python -m benchmarks.gpu.report && exit $$status

# Packages beside PyTorch, NumPy and the like, for the Python version of the GPU's machine; GPU_WHEELS=all downloads everything,
# about 3 GB, for the interpreter that runs this.
gpu-wheels: $(READY)
	mkdir -p $(WHEELS)
ifeq ($(GPU_WHEELS),all)
	$(BIN)/python -m pip wheel --wheel-dir $(WHEELS) ".[test]"
else
	$(BIN)/python -m pip download --dest $(WHEELS) --no-deps --only-binary :all: --python-version $(GPU_PYTHON_VERSION) \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -r benchmarks/gpu/requirements/compiled.txt
	$(BIN)/python -m pip wheel --wheel-dir $(WHEELS) --no-deps -r benchmarks/gpu/requirements/pure.txt
endif

gpu-weights: $(if $(wildcard $(WHEELS)/*.whl),.gpu/.ready,$(READY))
	$(GPU)/python -m benchmarks.gpu.weights --out build/gpu-weights
