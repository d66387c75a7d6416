# `make help` lists the targets. The virtual environment is made when missing and reused while it is current.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# One thread a process: two workers of several threads each get in each other's way. A file's tests stay together,
# since they share what is costly to set up. Files keep the order that tests/conftest.py gives them, the longest first:
# xdist would put those with few tests last, which are the slow ones, and one worker would wait for the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

PEERS := build/bench_peers
BENCHMARKS := contrastive_step frozen sentence_step operators effective_batch losses padding encode data log_mel retrieval growth protocols

.DEFAULT_GOAL := help
.PHONY: help install demo demo-scratch demo-audio demo-audio-scratch test test-peers check static docs format bench smoke-test-gpu stress clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(STAMP)  ## Install the package with its demo and development extras into .venv

# Installed again when the packaging or the tested set changes; sources are linked, not copied.
$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	# Apart, because aisfx pins an old NumPy (only its weights are used) and tinysoundfont depends on PyAudio, which has
	# to be compiled and is not used.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps aisfx tinysoundfont
	touch $@

demo: install  ## Train, evaluate, save and load back on the built-in emoji pictures (outputs/demo)
	$(BIN)/python training_scripts/run_demo.py

demo-scratch: install  ## The demo on emoji without pretrained towers (outputs/demo_scratch)
	$(BIN)/python training_scripts/run_demo.py --from_scratch

demo-audio: install  ## The same on the built-in notes and drums (outputs/demo_audio)
	$(BIN)/python training_scripts/run_demo.py --modality audio

demo-audio-scratch: install  ## The demo on notes and drums without pretrained towers (outputs/demo_audio_scratch)
	$(BIN)/python training_scripts/run_demo.py --modality audio --from_scratch

test: static  ## Lint, formatting, types, then the whole test suite
	$(PYTEST) -m "slow or not slow"

check: static  ## What a contributor runs: lint, formatting, types, then the fast tests
	$(PYTEST)

static: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-peers: install $(PEERS)  ## The tests that need open_clip, onnx, wandb, mteb and other peers (and chromium), which `test` skips
	PYTHONPATH=$(PEERS) $(PYTEST) -m "slow or not slow" tests/models tests/hub tests/data/test_layouts.py \
		tests/test_interoperability.py tests/evaluation/test_mteb.py tests/training/test_trackers.py

format: install  ## Sort imports, mend what ruff can, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install $(PEERS)  ## Measure against peers, over half an hour on two cores: tables and JSON in benchmarks/results
	for name in $(BENCHMARKS); do PYTHONPATH=$(PEERS) $(BIN)/python benchmarks/$$name.py || exit 1; done

docs: install $(VENV)/docs  ## Build the documentation site (docs/_build/html); a warning is an error
	PYTHONPATH=src $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

smoke-test-gpu: install  ## Smoke test of the GPU check, on the CPU: all parts at the smallest sizes, which measure nothing
	PYTHON=$(BIN)/python bash benchmarks/gpu_check.sh --device cpu --tiny

stress: install  ## Kill runs a hundred times, damage states and data, disturb a Hub: results in benchmarks/results
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/stress.py

$(VENV)/docs: setup.py $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Apart from the package, and without their dependencies: torch and transformers stay those of .venv.
$(PEERS): benchmarks/requirements.txt $(STAMP)
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --target $@ --requirement benchmarks/requirements.txt
	touch $@

clean:  ## Remove the virtual environment, caches and outputs
	rm -rf $(VENV) outputs build docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
