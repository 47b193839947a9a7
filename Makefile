# Every target makes the virtual environment it needs; nothing but Python 3.11+ and make has to be there.
#
#   make demo            the whole life of a secret, on real servers; then curl away (Ctrl-C stops)
#   make demo ONCE=1     the same, ending by itself
#   make test            the tests, on PYTHON (default: python3)
#   make test-all        the tests on every Python of 3.11, 3.12 and 3.13 that is there
#   make reliability     the fault table at full length, with a report (about 20 minutes)
#   make pools           connection pools through many rotations, with a report
#   make matrix          every framework under every server, with a report
#   make scale           10,000 leases, and a fleet of 50, with their figures (about 12 minutes)
#   make bench           reads and requests beside their peers; writes docs/performance.md
#   make monitoring      alert rules and dashboard against a real Prometheus (installs it where it is missing)
#   make docs            the site, with warnings as errors
#   make fuzz            100,000 paths and 20,000 hostile answers; make fuzz-guided: coverage-guided, ten minutes
#   make lock, make audit, make sbom   the development lock file, a look at advisories (needs their service), the SBOM
#   make lint            ruff, mypy and import-linter
#   make format          let ruff put the layout right
#   make clean           away with everything that was made

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
TESTS ?= tests

.PHONY: demo test test-all reliability pools matrix scale bench monitoring docs fuzz fuzz-guided lock audit sbom lint format clean

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

pools: $(VENV)/.installed
	$(BIN)/python -m tests.pools

matrix: $(VENV)/.installed
	$(BIN)/python -m tests.servers $(CELLS)

scale: $(VENV)/.installed
	$(BIN)/python -m benchmarks.leases
	$(BIN)/python -m benchmarks.fleet

bench: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --editable '.[bench]'
	$(BIN)/python -m benchmarks --write

monitoring: $(VENV)/.installed
	@command -v promtool >/dev/null && command -v prometheus >/dev/null || \
	  { apt-get update && apt-get install -y --no-install-recommends prometheus; }
	MONITORING=1 $(BIN)/python -m pytest tests/monitoring

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.security

fuzz-guided: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --editable '.[fuzz]'
	$(BIN)/python -m tests.security.guided 600

lock audit sbom: $(VENV)/.supply

lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --generate-hashes \
	  --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
	  -o requirements-dev.lock -q

audit:
	$(BIN)/pip-audit -r requirements-dev.lock --require-hashes --disable-pip

sbom:
	$(PYTHON) -m venv build/sbom && build/sbom/bin/pip install -q .
	@# where it was installed from is a path of this machine
	rm -f build/sbom/lib/python*/site-packages/vault_middleware-*.dist-info/direct_url.json
	mkdir -p dist && $(BIN)/cyclonedx-py environment build/sbom/bin/python --output-reproducible --of JSON -o dist/sbom.json
	SBOM=dist/sbom.json $(BIN)/python -m pytest -q tests/packaging/test_sbom.py

$(VENV)/.supply: $(VENV)/.installed
	$(BIN)/python -m pip install -qq --editable '.[supply]'
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -r vault_middleware -x vault_middleware/devstack,vault_middleware/cli/demo.py -s B101,B106,B311

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
