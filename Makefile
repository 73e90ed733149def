# `make demo` and `make test` do everything on a fresh machine with Python 3.11+, make and git.

PYTHON ?= python3
BIN := .venv/bin
RESULTS := --runs results

.PHONY: demo test slow test-browser test-cluster check lint types tables figures report clean

demo: .venv/installed  ## the main job, offline, on embedded data
	$(BIN)/resrepro demo

test: .venv/developing  ## the default test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: .venv/developing  ## the long tests, minutes in all
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

test-browser: .venv/developing  ## the report in headless Chromium, which is installed from Debian's packages
	{ command -v chromium && command -v chromedriver; } || { apt-get update && apt-get install -y chromium chromium-driver; }
	$(BIN)/python -m pytest -m browser

test-cluster: .venv/developing  ## through a real Slurm of one node, from Debian's packages; as root
	@PATH="$$PATH:/usr/sbin"; { command -v slurmctld && command -v munged; } >/dev/null || { \
	    apt-get update --quiet && DEBIAN_FRONTEND=noninteractive \
	    apt-get install --quiet --yes --no-install-recommends slurm-wlm munge; }
	PATH="$$PATH:/usr/sbin" $(BIN)/python -m pytest -m cluster tests/cluster

check: lint types  ## what CI runs before the tests

lint: .venv/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/developing
	$(BIN)/mypy

tables: .venv/installed  ## regenerate tables/ from the committed records
	$(BIN)/resrepro compare table1 table2 table3 table4 table5 table6 $(RESULTS) --tables tables
	$(BIN)/resrepro compare figure1 figure4 figure6 figure7 demo $(RESULTS) --tables tables
	$(BIN)/resrepro compare table2-folder figure4-folder $(RESULTS) --tables tables
	$(BIN)/resrepro compare table6-digits figure1-digits figure6-digits $(RESULTS) --tables tables
	$(BIN)/resrepro claims $(RESULTS) --tables tables

figures: .venv/installed  ## regenerate figures/ from the committed records
	$(BIN)/resrepro plot figure3 $(RESULTS) --figures figures
	$(BIN)/resrepro plot figure1 figure4 figure4-folder figure6 figure7 demo $(RESULTS) --figures figures --paper
	$(BIN)/resrepro plot figure1-digits figure6-digits $(RESULTS) --figures figures

report: .venv/installed  ## regenerate docs/report.html from the committed records
	$(BIN)/resrepro report $(RESULTS) --out docs/report.html

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The stamps are made last, so that an interrupted installation starts again.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# What only development takes: the tests, lint, types.
.venv/developing: .venv/installed requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
