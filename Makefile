# The only place that spells the commands. Every target sets up .venv by itself.
# The first that runs: a version manager may put a python3.11 on the path that only says it is absent.
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do $$each -c '' 2>/dev/null && command -v $$each && exit; done)
BIN := .venv/bin
# All that is tested and built, and what runs of the pipeline need; who has the first needs nothing more for the second.
STAMP := .venv/.installed
RUNS := $(if $(wildcard $(STAMP)),$(STAMP),.venv/.runs)
# Address of another index of wheels beside the usual one, e.g. PyTorch's own for machines without a GPU.
TORCH_INDEX ?=
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)')
ON_ALL_CORES := -n auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

.PHONY: demo test test-long operations browser soak identity volume parity check format docs hostile bench gpu methods quality models world-quality setup help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(STAMP)  ## Create .venv with the exact versions of constraints.txt

$(BIN)/python:
	@test -n '$(PYTHON)' || { echo 'Python 3.11, 3.12 or 3.13 is needed, found none; set PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, found {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv

.venv/.runs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[pipeline]'
	@touch $@

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[pipeline,ray,video,openclip,heic,docs,dev]'
	@touch $@

demo: $(RUNS)  ## Edit the embedded photographs by text and show the page
	$(BIN)/styleclip demo

docs: $(STAMP)  ## Pages of the library from its docstrings, in build/api
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file docs/api/mkdocs.yml

test: $(STAMP)  ## All tests, on all cores (8 at most)
	$(BIN)/pytest $(ON_ALL_CORES) --durations=25

test-long: $(STAMP)  ## The same with every hostile file and a longer search for what breaks a law (an hour)
	HYPOTHESIS_PROFILE=long HOSTILE_EXAMPLES=2000 FORMS_EXAMPLES=96 $(BIN)/pytest $(ON_ALL_CORES) --timeout=7200

parity: $(STAMP)  ## Differences to the published implementations, on the golden arrays
	$(BIN)/pytest tests/core -q -k "equal or golden or parity"

operations: $(STAMP) browser  ## Deployments, Retry, limits and secrets on a real Prefect server, with a browser
	$(BIN)/pytest -n 2 --dist=loadfile --no-loadscope-reorder --durations=15 tests/operations

soak: $(STAMP)  ## Bad nights of store, workers and server, and an account of what they cost (half an hour)
	$(BIN)/python -W ignore -m tests.nights.soak

identity: $(STAMP)  ## Replace every input of every step at every moment of a run, and say what became of it (half an hour)
	PREFECT_LOGGING_LEVEL=CRITICAL $(BIN)/python -W ignore -m tests.nights.identity_matrix

volume: $(STAMP)  ## List a million objects and edit ten thousand: images/s and peak memory (over an hour)
	$(BIN)/python -W ignore -m benchmarks.volume

# Debian's packages that tests look for, where they are missing and may be installed; else what needs them is skipped.
# Where systemd runs, nginx and Prometheus would be started with their installation: there they are left to you.
SERVERS := $(if $(wildcard /run/systemd/system),,nginx:nginx promtool:prometheus)
MISSING = $(foreach each,chromium:chromium $(SERVERS),$(shell PATH="$$PATH:/usr/sbin" \
	command -v $(firstword $(subst :, ,$(each))) >/dev/null || echo $(lastword $(subst :, ,$(each)))))

browser:
	@test -z '$(strip $(MISSING))' || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { apt-get update -qq; \
		RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(MISSING); }; } || \
		echo 'not here and not installed: $(strip $(MISSING)); tests that need them are skipped' >&2

check: $(STAMP)  ## Format, lint, types, layer rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hostile: $(STAMP)  ## Hostile weights files against every loader, with a long random search
	HOSTILE_EXAMPLES=20000 $(BIN)/python -W ignore tests/core/hostile_run.py
	HOSTILE_EXAMPLES=20000 $(BIN)/pytest tests/core/test_hostile_files.py -k random

bench: $(STAMP)  ## Benchmarks, as ratios measured in one run
	$(BIN)/python -m benchmarks

gpu: $(STAMP)  ## What a GPU does with the hot paths (nine minutes, needs one)
	$(BIN)/python -m benchmarks.gpu

methods: $(STAMP)  ## The three methods beside the reference's loops: what they move, keep and cost (over an hour)
	$(BIN)/python -m benchmarks.methods

quality: $(STAMP)  ## Every way to edit by forty prompts, at equal moves of the target (over an hour, resumes)
	$(BIN)/python -m benchmarks.quality

models: $(STAMP)  ## Rebuild the embedded models from their seeds (over an hour on 2 cores)
	$(BIN)/python -m styleclip.data.world.build

world-quality: $(STAMP)  ## Measure the embedded models and what edits do in their world
	$(BIN)/python -m styleclip.data.world.quality
