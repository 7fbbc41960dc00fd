# Every command of this repository. `make` alone lists them; each target makes what it needs.
# A virtual environment is made once and then kept; editing pyproject.toml brings it up to date.

# The interpreter that virtual environments are made with: the first of these that runs and is new enough.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; done)

# How many tests run at the same time. Most of their time is compilation, which uses one core. Each worker compiles for
# itself what no other has left in the cache yet, so more than two workers gain little.
# One worker, for a debugger or for output as it comes: make test WORKERS=0
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist worksteal

# More arguments for the program that the target runs: make test ARGS="-k adam -x"
ARGS ?=

VENV := .venv
PARITY := .venv-parity
OLDEST := .venv-oldest
PROTO := .venv-proto
BENCH := .venv-bench
CUDA := .venv-cuda
PACKAGES := .venv-packages
GPU := .venv-gpu
MUTANTS := .venv-mutants
NODE := examples/node/node_modules
PIP := bin/python -m pip install --quiet --disable-pip-version-check

# Asked for in exactly this form, PyTorch comes without its gigabytes of CUDA on machines whose index prefers that.
# PyTorch's own test cases need expecttest. DeepSpeed is of the version in benchmarks/requirements.txt.
FRAMEWORKS := torch==2.13.0 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 expecttest==0.3.0 deepspeed==0.19.8
# The successor of numba-cuda, and what both it and the numba.cuda that Numba brings compile with.
MLIR := numba-cuda-mlir==0.6.0 nvidia-nvvm==13.* nvidia-cuda-nvrtc==13.* nvidia-nvjitlink==13.*
# The oldest that pyproject.toml admits: tools/generate_proto.py says why, and checks it.
GRPCIO_TOOLS := grpcio-tools==1.70.0 protobuf==5.29.6

# What makes mutants of our code.
COSMIC_RAY := cosmic-ray==8.7.0

# One file of tests for each public feature: what a version of a dependency could break.
LIBRARY := optimizer accumulation extras formats eight_bit_state rows schedules scaling state_dicts bits cache warmup
SERVER := config concurrency restart service snapshot
CLIENT := faults model
FEATURES := $(LIBRARY:%=tests/library/test_%.py) $(SERVER:%=tests/server/test_%.py) $(CLIENT:%=tests/client/test_%.py) \
	tests/interop/test_borrow.py tests/ps tests/cli tests/guards tests/cuda/test_simulator.py

# What is quick, once the kernels are compiled.
QUICK := tests/ps tests/docs tests/guards/test_habits.py tests/guards/test_safety.py \
	$(patsubst %,tests/library/test_%.py,axes element limits numerics optimizer param_groups refusals scalars scaling \
	schedules state_dicts) $(patsubst %,tests/server/test_%.py,budget config receive snapshot data_folder) \
	tests/client/test_retry.py tests/client/test_transfer.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test quick campaigns debian examples languages torture mutants demo check lint types generated wheel parity cuda packages oldest bench evidence gpu proto format clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(VENV)/.test  ## run the test suite (ARGS="-k name" narrows it)
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not parity and not cuda and not campaign and not languages" $(ARGS)

quick: $(VENV)/.test  ## two thousand tests that start no process: half a minute, for while you work
	$(VENV)/bin/python -m pytest -m "not parity and not cuda and not campaign and not languages and not slow" $(QUICK) $(ARGS)

campaigns: $(VENV)/.test | debian  ## what takes minutes: kills, forks, signals and floods, a push of 1 GB, the demonstration, the longer examples
	$(VENV)/bin/python -m pytest -m "campaign and not parity" $(ARGS)

examples: $(VENV)/.test $(NODE)/.package-lock.json  ## run the workers in other languages, through a kill of their server
	$(MAKE) -C examples/cpp -j2 WARNINGS="-Wall -Wextra -Wpedantic -Werror"
	$(VENV)/bin/python -m pytest -m languages tests/examples $(ARGS)

torture: $(VENV)/.test  ## the campaigns at the counts of a release, with new seeds; goes on where it was stopped (days)
	$(VENV)/bin/python -m tests.torture $(ARGS)

mutants: $(MUTANTS)/.made  ## change the files that matter, one place at a time, and see that a test notices (an hour)
	$(MUTANTS)/bin/python tools/mutants.py $(ARGS)

demo: $(VENV)/.demo  ## train on handwritten digits, kill the server half-way, and watch it recover
	$(VENV)/bin/numba-adam demo $(ARGS)

check: lint types generated wheel  ## run every check that is not a test

lint: $(VENV)/.dev  ## ruff on the Python code, hadolint on the Dockerfile, buf on the wire contract: its style, and whether it breaks what was released
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/hadolint examples/Dockerfile
	cd proto && ../$(VENV)/bin/buf lint
	cd proto && ../$(VENV)/bin/buf breaking --against released.binpb

types: $(VENV)/.dev  ## mypy --strict outside the kernels
	$(VENV)/bin/python tools/check_types.py $(ARGS)

generated: $(PROTO)/.made  ## the committed protobuf code is what proto/ generates
	$(PROTO)/bin/python tools/generate_proto.py --check

wheel: $(VENV)/.dev  ## build the wheel, install it into an empty environment, run it from an empty folder
	$(VENV)/bin/python tools/check_wheel.py

parity: $(PARITY)/.made  ## compare with PyTorch and JAX, and borrow their arrays
	$(PARITY)/bin/python -m pytest -m parity $(ARGS)

cuda: $(CUDA)/.made  ## compile the CUDA kernels, read their PTX, keep and load them; needs no GPU (downloads 200 MB once)
	$(CUDA)/bin/python -m pytest $(PARALLEL) tests/cuda $(ARGS)

# numba-cuda-mlir takes seconds for a kernel, so each layout is compiled in one of its two ways for each capability.
packages: $(PACKAGES)/.made  ## compile them with numba-cuda-mlir and Numba's own numba.cuda too, and read their PTX
	$(PACKAGES)/bin/python -m pytest $(PARALLEL) tests/cuda/test_ptx.py -k "not (flat and sm_80) and not (table and sm_90)" $(ARGS)
	HIDDEN_PACKAGES=numba_cuda_mlir $(PACKAGES)/bin/python -m pytest $(PARALLEL) tests/cuda/test_ptx.py $(ARGS)

gpu: $(GPU)/.made  ## on a machine with an NVIDIA GPU: compare its bits with the CPU's, and measure
	$(GPU)/bin/python -m benchmarks.gpu $(ARGS)

oldest: $(OLDEST)/.made  ## a test file for each public feature, on the oldest versions that pyproject.toml admits
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not parity and not cuda and not campaign and not languages" $(FEATURES) $(ARGS)

bench: $(BENCH)/.made  ## run the benchmarks against their peers and write benchmarks/results (about 20 minutes)
	$(BENCH)/bin/python -m benchmarks $(ARGS)
	$(BENCH)/bin/python -m benchmarks.table --write
	$(BENCH)/bin/python -m benchmarks.plot

evidence: $(BENCH)/.made  ## train with 8-bit state beside its peers and write benchmarks/results (about 12 minutes)
	$(BENCH)/bin/python -m benchmarks.evidence $(ARGS)

proto: $(PROTO)/.made  ## generate numba_adam/ps/v1 from proto/
	$(PROTO)/bin/python tools/generate_proto.py

format: $(VENV)/.dev  ## format the code, correct the documents' quotations of it, and redraw the tree of folders
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/python tools/fix_quotations.py
	$(VENV)/bin/python tools/draw_tree.py

clean:  ## remove the virtual environments and everything else that can be made again
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environments; a stamp file says what was installed and when ---

%/.venv-made:
	@test -n "$(PYTHON)" || { echo "numba-adam needs Python 3.11 or newer, and none was found." \
		"Install it, or say where it is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(@D)
	touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/.venv-made
	$(VENV)/$(PIP) --editable ".[$*]"
	touch $@

$(PARITY)/.made: pyproject.toml | $(PARITY)/.venv-made
	$(PARITY)/$(PIP) --editable ".[test]" $(FRAMEWORKS)
	touch $@

$(OLDEST)/.made: pyproject.toml tools/lower_bounds.py | $(OLDEST)/.venv-made
	$(OLDEST)/bin/python tools/lower_bounds.py > $(OLDEST)/constraints.txt
	$(OLDEST)/$(PIP) --editable ".[test]" --constraint $(OLDEST)/constraints.txt
	touch $@

$(CUDA)/.made: pyproject.toml | $(CUDA)/.venv-made
	$(CUDA)/$(PIP) --editable ".[ptx]"
	touch $@

$(PACKAGES)/.made: Makefile pyproject.toml | $(PACKAGES)/.venv-made
	$(PACKAGES)/$(PIP) --editable ".[test]" $(MLIR)
	touch $@

$(GPU)/.made: pyproject.toml | $(GPU)/.venv-made
	$(GPU)/$(PIP) --editable ".[cuda]" torch
	touch $@

$(BENCH)/.made: pyproject.toml benchmarks/requirements.txt | $(BENCH)/.venv-made
	$(BENCH)/$(PIP) --editable ".[bench]" --requirement benchmarks/requirements.txt
	touch $@

$(MUTANTS)/.made: Makefile pyproject.toml | $(MUTANTS)/.venv-made
	$(MUTANTS)/$(PIP) --editable ".[test]" $(COSMIC_RAY)
	touch $@

languages:
	tools/install_languages.sh

debian:
	tools/install_campaigns.sh

$(NODE)/.package-lock.json: examples/node/package.json examples/node/package-lock.json | languages
	npm ci --prefix examples/node --ignore-scripts --no-audit --no-fund
	touch $@

$(PROTO)/.made: Makefile | $(PROTO)/.venv-made
	$(PROTO)/$(PIP) $(GRPCIO_TOOLS)
	touch $@
