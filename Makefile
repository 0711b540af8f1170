# The only place that spells the commands. Every target sets up .venv by itself.
# The first that runs: a version manager may put a python3.11 on the path that only says it is absent.
PYTHON ?= $(shell for each in python3.11 python3.12 python3; do $$each -c '' 2>/dev/null && command -v $$each && exit; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test operations parity check format hostile bench methods quality models world-quality setup help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(STAMP)  ## Create .venv with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or 3.12 is needed, found none; set PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"Python 3.11 or 3.12 is needed, found {sys.version.split()[0]}; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,video,dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## Edit the embedded photographs by text and show the page
	$(BIN)/styleclip demo

test: $(STAMP)  ## All tests
	$(BIN)/pytest

parity: $(STAMP)  ## Differences to the published implementations, on the golden arrays
	$(BIN)/pytest tests/core -q -k "equal or golden or parity"

operations: $(STAMP)  ## Retry on a real Prefect server, with workers and a browser (needs Chromium)
	@command -v chromium >/dev/null || { echo 'Chromium is needed: apt-get install chromium' >&2; exit 2; }
	$(BIN)/pytest tests/operations

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

methods: $(STAMP)  ## The three methods beside the reference's loops: what they move, keep and cost (over an hour)
	$(BIN)/python -m benchmarks.methods

quality: $(STAMP)  ## Every way to edit by forty prompts, at equal moves of the target (over an hour, resumes)
	$(BIN)/python -m benchmarks.quality

models: $(STAMP)  ## Rebuild the embedded models from their seeds (over an hour on 2 cores)
	$(BIN)/python -m data.world.build

world-quality: $(STAMP)  ## Measure the embedded models and what edits do in their world
	$(BIN)/python -m data.world.quality
