# Every target sets up what it needs. PYTHON= names another Python than python3. Benchmarks read SCALE, RATE, PEER
# and so on from the environment, to which make adds what is given on its command line.
.DEFAULT_GOAL := help
PYTHON ?= python3
ROUNDS ?= 20
# Tests wait for daemons most of the time: each process runs servers of its own.
JOBS ?= 5
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: help demo clean-demo test coverage needs torture check format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { sub("%", "NAME", $$1); printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## run it all on real servers; SECONDS=30, RATE=200, STORE=postgres
	@$(BIN)/python -m compose.demo run $(if $(SECONDS),--seconds "$(SECONDS)") $(if $(RATE),--rate "$(RATE)") $(if $(STORE),--store "$(STORE)")

clean-demo: $(INSTALLED) ## remove the demo's data, on servers of your own too
	@$(BIN)/python -m compose.demo clean

test: needs check ## check, then all tests on real servers; ARGS= for pytest, JOBS=5, PG15_BIN=
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal $(ARGS)

coverage: needs ## all tests, and which lines none of them runs in its own process: daemons are not seen
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=worksteal --cov --cov-report=term:skip-covered $(ARGS)

torture: needs ## the tests that find trouble at random, for long; ROUNDS=20, SEED=
	$(BIN)/python -m pytest -m torture --rounds=$(ROUNDS) --seed=$(or $(SEED),new) --timeout=$$((300 * $(ROUNDS))) $(ARGS)

needs: $(INSTALLED)
	@$(BIN)/python -m tests.needs

check: $(INSTALLED) ## format, lint, types, import contracts, compose.yaml, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose/compose.yaml
	$(BIN)/hadolint compose/Dockerfile

format: $(INSTALLED) ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-%: $(INSTALLED) ## measure capture, large, encoding, projector, api, streams, freshness; SCALE=0.1, capture: PEER=debezium, SOURCE=wal or timestamp, ROUNDS=3; projector: PROCESSES=2, GROWTH=1, freshness: PARTITIONS=1
	@$(BIN)/python -m tests.bench.$*

lock: $(INSTALLED) ## lock the requirements of pyproject.toml anew
	$(PIP) install uv
	$(COMPILE) pyproject.toml --output-file requirements.txt
	$(COMPILE) pyproject.toml --extra dev --output-file requirements-dev.txt

clean: ## remove the virtual environment and what the tools left
	rm -rf $(VENV) .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist

$(INSTALLED): requirements-dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name a newer one: make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: on Debian and Ubuntu, apt install python3-venv"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing the locked requirements into $(VENV), about a minute the first time"
	@$(PIP) install --require-hashes --no-deps --requirement requirements-dev.txt
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@
