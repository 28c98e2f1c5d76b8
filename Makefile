# Every target makes its own virtual environment in .venv when there is none, or when pyproject.toml or constraints.txt
# changed since it was made. All that a machine needs beforehand is Python >= 3.11 with its venv module, and make.
#
#   make demo PYTHON=python3.12      another interpreter (for a new .venv)
#   make test ARGS='-k window -x'    further arguments for pytest

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.maskc-ready
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
PYTEST := $(BIN)/python -m pytest --durations=10 -n auto --maxprocesses 8 --dist worksteal
CHECKED := maskc grammar codegen runtime examples benchmarks tests .ci

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-all lint types format clean

help:
	@echo 'make demo       compile a spec, run it, check and time it, then train a little on real text'
	@echo 'make test       the tests that belong to every change (ARGS=... goes to pytest)'
	@echo 'make test-all   every test, the slow ones too'
	@echo 'make lint       formatting and style'
	@echo 'make types      strict type check of the whole package'
	@echo 'make format     let the formatters and the safe fixes of the linter change the files'
	@echo 'make clean      remove .venv, caches and build outputs'

venv: $(READY)

# The CPU build of torch is asked for by name first, because the plain wheel for Linux brings gigabytes of CUDA; an index
# that lacks it, and systems whose wheels have no such suffix, take the second line.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'maskc needs Python >= 3.11; choose one with PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'making $(VENV) (torch, triton and the tools of constraints.txt; minutes on a fresh machine)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) 'torch==$(TORCH)+cpu' -c constraints.txt 2>/dev/null || \
	    $(PIP) torch -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py

# Triton decides when it is imported whether it interprets kernels or compiles them, so the suite is two runs.
test: $(READY)
	$(PYTEST) -m 'not slow and not interpret' $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -m 'interpret and not slow' $(ARGS)

test-all: $(READY)
	$(PYTEST) -m 'not interpret' $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -m interpret $(ARGS)

lint: $(READY)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/maskc check examples/*.mask >/dev/null
	$(BIN)/maskc fmt --check maskc/library.mask examples/*.mask examples/gallery/*.mask docs/*.mask

format: $(READY)
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/maskc fmt maskc/library.mask examples/*.mask examples/gallery/*.mask docs/*.mask

types: $(READY)
	$(BIN)/python .ci/check_types.py

clean:
	rm -rf $(VENV) build dist maskc.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
