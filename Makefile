# Three commands: `make train`, `make test` and `make test-all`. Each makes .venv when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OLDEST := .venv-oldest

.PHONY: train test test-all test-oldest test-wheel unit smoke lint types clean

train: $(VENV)/.installed
	$(BIN)/python -m jobs.train --config jobs/configs/quickstart.yaml

# Lint, types, unit tests on two cores, and of the tests over actors one of each kind: some minutes.
test: lint types unit smoke

# Everything, as CI runs it.
test-all: test
	$(BIN)/python -m pytest -q -n 2 -m long tests/unit
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not smoke' tests/ray
	$(BIN)/python -m pytest -q -m 'not smoke' tests/e2e

# The oldest versions that pyproject.toml allows, in an environment of their own: 6 GB to download, and no part of CI.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q -n 2 -m 'not long' tests/unit
	$(OLDEST)/bin/python -m pytest -q -m smoke tests/ray tests/e2e

# The wheel in a fresh environment outside of the clone trains a configuration that it brings along; no part of CI.
test-wheel:
	set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv $$dir/venv; \
	$$dir/venv/bin/pip wheel --quiet --no-deps --wheel-dir $$dir .; \
	$$dir/venv/bin/pip install --quiet "$$(ls $$dir/*.whl)[train]"; \
	cd $$dir; venv/bin/hsee train --in-process --set training.rounds=2 \
	  --config venv/lib/python3*/site-packages/jobs/configs/quickstart.yaml

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 -m 'not long' tests/unit

smoke: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m smoke tests/ray tests/e2e

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hsee-ray needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

$(OLDEST)/.installed: pyproject.toml tests/lower_bounds.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet packaging
	$(OLDEST)/bin/python tests/lower_bounds.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --editable '.[dev]' --constraint $(OLDEST)/constraints.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info
