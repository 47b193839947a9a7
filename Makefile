# Every target makes the virtual environment it needs; nothing but Python 3.11+ and make has to be there.
#
#   make demo            the whole life of a secret, on real servers; then curl away (Ctrl-C stops)
#   make demo ONCE=1     the same, ending by itself
#   make test            the tests, on PYTHON (default: python3)
#   make test-all        the tests on every Python of 3.11, 3.12 and 3.13 that is there
#   make reliability     the fault table at full length, with a report (about 20 minutes)
#   make lint            ruff, mypy and import-linter
#   make format          let ruff put the layout right
#   make clean           away with everything that was made

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
TESTS ?= tests

.PHONY: demo test test-all reliability lint format clean

demo: $(VENV)/.installed
	$(BIN)/vault-middleware demo $(if $(ONCE),--once)

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(TESTS)

test-all:
	@for version in 3.11 3.12 3.13; do \
	  if python$$version -c '' 2>/dev/null; then $(MAKE) test PYTHON=python$$version || exit 1; fi; \
	done

reliability: $(VENV)/.installed
	$(BIN)/python -m tests.reliability $(FAULTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, and $(PYTHON) is $(VERSION); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[test,lint]'
	@touch $@

clean:
	rm -rf .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
