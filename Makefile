# Every target sets up .venv when it is missing or older than pyproject.toml. Needs Python >= 3.11.
PYTHON ?= python3
MPI ?= mpich
RANKS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(MPI)
GPU_TESTS := $(addprefix tests/backends/test_,gpu_logic.py backends.py backend_nn.py replay.py) tests/tools/test_bench.py
TEST = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 3 --dist worksteal
GPU_SIZES := 1000000,25600000,100000000,vgg16,resnet20

# Open MPI alone looks at these: ranks in a container, and more ranks than cores.
export OMPI_ALLOW_RUN_AS_ROOT = 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM = 1
export PRTE_MCA_rmaps_default_mapping_policy = :oversubscribe

.PHONY: train test test-quick test-gpu bench-network study chaos lint clean
.DELETE_ON_ERROR:

train: $(READY)  ## train on the embedded digits; RANKS=4 ARGS="--density 0.001" change the run
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m dls.train --config runs/digits.toml $(if $(MAKE_TERMOUT),--progress bar) $(ARGS)

test: $(READY)  ## all tests, three at a time, as many of them wait, and which took longest
	$(TEST) --durations=15 $(ARGS)

test-quick: $(READY)  ## the laws of reference/ and what backends owe them, in a minute
	$(TEST) tests/laws tests/backends $(ARGS)

test-gpu: $(READY)  ## every test of the CuPy backend on this machine's GPU, then its times, to runs/results/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	DLS_TEST_GPU=1 $(BIN)/python -m pytest $(GPU_TESTS) $(ARGS)
	$(BIN)/python -m dls.bench select --backend cupy --sizes $(GPU_SIZES) --threads $$(nproc) --report runs/results
	$(BIN)/python -m dls.bench adjust --backend cupy --sizes vgg16,resnet20 --threads $$(nproc) --report runs/results

bench-network: $(READY)  ## steps of every method over slow networks that this machine plays itself (root), to runs/results/
	$(BIN)/python -m dls.bench network --report runs/results --chart runs/results/network.png $(ARGS)

study: $(READY)  ## every method, density and seed of runs/study/, some two hours, goes on where it was stopped; to runs/results/
	$(BIN)/python -m dls.study $(sort $(wildcard runs/study/*.toml)) --report runs/results $(ARGS)

chaos: $(READY)  ## kill, freeze, stop, starve and cut off runs a hundred times, and resume them; about ten minutes
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "this needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(MPI),dev]'
	@touch $@

clean:  ## remove what set-up and tests made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
