# What one does here. Everything runs in the virtual environment VENV.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test check fmt docs bench

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## a virtual environment with kdcache and all it needs (7 GB: torch with CUDA)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## images to an evaluated student, without a download: minutes on two cores
	$(BIN)/kdcache demo

test: setup  ## all tests that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=60 --durations-min=4

check: setup  ## style, types, and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

docs: setup  ## the guide, as a site in site/ that needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'site/index.html; its search needs a server: python -m http.server -d site'

fmt: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## every benchmark, in a quarter of an hour on two cores; figures go to bench/
	$(BIN)/python benchmarks/all.py --out bench
