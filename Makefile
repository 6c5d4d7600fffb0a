# Short recipes that people and CI both call. `make demo` and `make test` need nothing but Python 3.11+.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= recipes/starter/config_starter.yaml
MODEL := .preftune/models/SmolLM2-135M-Instruct
export DO_NOT_TRACK = true
# Two files of tests at a time: much of their time is imports and waiting.
TWO := -n 2 --dist loadfile

.PHONY: demo test test-slow faults bench check docs docs-serve ui install clean

demo: install  ## the whole pipeline on the starter recipe, from nothing to the verdict
	@$(BIN)/preftune run $(RECIPE)

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (the first time: a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "preftune needs Python 3.11 or newer: make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@

test: install  ## the tests, one real-model run included
	$(BIN)/python -m pytest -m "not slow" $(TWO)

test-slow: install  ## injected faults, browser, servers
	$(BIN)/python -m pytest -m slow $(TWO)

faults: install  ## every promised fault, injected; ends with the table of what survived
	$(BIN)/python -m pytest -m promise -q --durations=0 --durations-min=60

bench: install  ## every benchmark but the GPU's (hours); rewrites the table in benchmarks/README.md
	@test -d $(MODEL) || $(BIN)/python -m preftune.embedded $(MODEL)
	$(BIN)/python -m benchmarks.table

check: install  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: install  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install  ## the same on http://127.0.0.1:8000, built again at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

ui: install  ## MLflow's UI on the workspace
	$(BIN)/preftune ui

clean:  ## removes the environment and caches; leaves the workspace (.preftune) and results (data) alone
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
