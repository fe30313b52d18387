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
TEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 3 --dist worksteal
# With SYSTEM set, test-gpu runs on $(PYTHON) and its packages; what is missing comes from wheels/ into .system/, without a network.
SYSTEM ?=
SYSTEM_HAS := numpy numba mpi4py h5py
FOR ?= 3.12

# Open MPI alone looks at these: ranks in a container, and more ranks than cores.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe

.PHONY: train help test test-quick test-gpu wheels bench-network study chaos lint clean
.DELETE_ON_ERROR:

train: $(TRAIN_READY)  ## train on the embedded digits; RANKS=4 ARGS="--density 0.001" change the run
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m dls.train --config runs/digits.toml $(if $(MAKE_TERMOUT),--progress bar) $(ARGS)

help:  ## list these targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

test: $(READY)  ## all tests, three at a time, as many of them wait, and which took longest
	$(TEST) --durations=15 $(ARGS)

test-quick: $(READY)  ## the laws of reference/ and what backends owe them, in a minute
	$(TEST) tests/laws tests/backends $(ARGS)

test-gpu: $(if $(SYSTEM),.system/.ready,$(READY))  ## every test of the CuPy backend on this machine's GPU, then its times, to runs/results/
	$(if $(SYSTEM),,$(PIP_INSTALL) --editable '.[cuda]')
	$(if $(SYSTEM),.system/bin/python,$(BIN)/python) -m tests.card $(ARGS)

wheels: $(READY)  ## for test-gpu SYSTEM=1 on a machine without a network: packages for its Python, FOR=3.12, to wheels/
	@mkdir -p wheels
	$(BIN)/python tests/system.py without $(SYSTEM_HAS) > wheels/needed.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary :all: --python-version $(FOR) --dest wheels -r wheels/needed.txt

.system/.ready: pyproject.toml $(wildcard wheels/*.whl)
	$(PYTHON) -m venv --clear --without-pip .system
	$(PYTHON) tests/system.py packages > $$(echo .system/lib/python*/site-packages)/system.pth
	$(PYTHON) tests/system.py missing > .system/needed.txt
	.system/bin/python -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels -r .system/needed.txt
	@touch $@

bench-network: $(TRAIN_READY)  ## steps of every method over slow networks that this machine plays itself (root), to runs/results/
	$(BIN)/python -m dls.bench network --report runs/results --chart runs/results/network.png $(ARGS)

study: $(READY)  ## every method, density and seed of runs/study/, some two hours, goes on where it was stopped; to runs/results/
	$(BIN)/python -m dls.study $(sort $(wildcard runs/study/*.toml)) --report runs/results $(ARGS)

chaos: $(TRAIN_READY)  ## kill, freeze, stop, starve and cut off runs a hundred times, and resume them; about ten minutes
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY)  ## ruff, its format, mypy, and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

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
	rm -rf $(VENV) .system .pytest_cache .mypy_cache .ruff_cache .hypothesis
