# Every target sets up .venv first, where it is missing or older than pyproject.toml. Needs Python >= 3.11.
PYTHON ?= python3
MPI ?= mpich
RANKS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# The environment has two stages, a marker file each: what training needs, and what tests and the linter need beside it.
TRAIN_READY := $(VENV)/.ready-train-$(MPI)
READY := $(VENV)/.ready-dev-$(MPI)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
GPU_TESTS := $(addprefix tests/backends/test_,gpu_logic.py backends.py backend_nn.py replay.py) tests/tools/test_bench.py
GPU_SIZES := 1000000,25600000,100000000,vgg16,resnet20

# Open MPI alone looks at these: ranks in a container, and more ranks than cores.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe

.PHONY: train help test test-gpu bench-network study chaos lint clean
.DELETE_ON_ERROR:

train: $(TRAIN_READY)  ## train on the embedded digits; RANKS=4 ARGS="--density 0.001" change the run
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m dls.train --config runs/digits.toml $(if $(MAKE_TERMOUT),--progress bar) $(ARGS)

help:  ## list these targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

test: $(READY)  ## all tests, three at a time, as many of them wait
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-gpu: $(READY)  ## every test of the CuPy backend on this machine's GPU, then its times, to runs/results/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	DLS_TEST_GPU=1 $(BIN)/python -m pytest $(GPU_TESTS) $(ARGS)
	$(BIN)/python -m dls.bench select --backend cupy --sizes $(GPU_SIZES) --threads $$(nproc) --report runs/results
	$(BIN)/python -m dls.bench adjust --backend cupy --sizes vgg16,resnet20 --threads $$(nproc) --report runs/results

bench-network: $(TRAIN_READY)  ## steps of every method over slow networks that this machine plays itself (root), to runs/results/
	$(BIN)/python -m dls.bench network --report runs/results --chart runs/results/network.png $(ARGS)

study: $(READY)  ## every method, density and seed of runs/study/, some two hours, goes on where it was stopped; to runs/results/
	$(BIN)/python -m dls.study $(sort $(wildcard runs/study/*.toml)) --report runs/results $(ARGS)

chaos: $(TRAIN_READY)  ## kill, freeze, stop, starve and cut off runs a hundred times, and resume them; about ten minutes
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# One make at a time sets up; those that waited look again whether there is anything left to do.
ifndef ALONE

$(TRAIN_READY) $(READY): pyproject.toml
	@flock pyproject.toml $(MAKE) --no-print-directory ALONE=yes $@

else

$(TRAIN_READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "this needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "setting up $(VENV), once"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --editable '.[$(MPI),plot]'
	@touch $@

$(READY): $(TRAIN_READY)
	@echo "adding to $(VENV) what tests and the linter need, once"
	$(PIP_INSTALL) --editable '.[$(MPI),dev]'
	@touch $@

endif

clean:  ## remove what set-up and tests made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
