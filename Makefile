# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11 or 3.12 and nothing else.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
# pip leaves out what is there, so this is quick where only a version changed.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# The plan half is checked strictly, as pyproject.toml says. Of all files only that calls, names and what is returned fit:
# the codes below want annotations that libraries without types don't make worth their while.
MYPY_CALLS := --config-file= --cache-dir=.mypy_cache/calls --python-version 3.11 --check-untyped-defs \
	--ignore-missing-imports --follow-imports=silent $(addprefix --disable-error-code=,arg-type assignment \
	call-overload dict-item func-returns-value misc operator type-var union-attr)
PYTEST := $(BIN)/python -m pytest
DEMO ?=

.DEFAULT_GOAL := help
.PHONY: help demo install test lint test-fast test-real test-cluster soak bench clean
# Two installations into one environment, or two stages on the same cores, would only hinder each other.
.NOTPARALLEL:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1	\2/p' Makefile

demo: $(VENV)/.installed  ## prepare, train on 2 workers, kill one, recover, generate (DEMO='train.steps=60' to change it)
	@$(BIN)/phalanx demo $(DEMO)

install: $(VENV)/.installed  ## only make .venv with the pinned dependencies and phalanx itself

# torch first and alone: DeepSpeed's build looks for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or 3.12 with venv was found; install one, or name it: make PYTHON=...' >&2; exit 2; }
	@echo '== install: $(VENV), once; some minutes'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[test]'
	@touch $@

test: lint test-fast test-cluster test-real  ## lint and all tests but the soak
	@echo '== make test: all stages passed'

lint: $(VENV)/.installed-test  ## ruff and mypy
	@echo '== lint'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(MYPY_CALLS) launch orchestrator model

test-fast: $(VENV)/.installed-test  ## tests that start no cluster
	@echo '== fast tests'
	$(PYTEST) -n 2 --dist worksteal -m 'not real and not cluster and not soak'

test-real: $(VENV)/.installed-test  ## tests on real Ray and DeepSpeed processes
	@echo '== tests on real processes'
	$(PYTEST) -m 'real and not cluster and not soak'

test-cluster: $(VENV)/.installed-test  ## tests on several hosts and SLURM; root
	@echo '== tests on several hosts'
	$(PYTEST) -m 'cluster and not soak'

soak: $(VENV)/.installed-test  ## the full counts; hours
	$(PYTEST) -m soak --timeout 0 -s

bench: $(VENV)/.installed-test  ## benchmarks against torchrun, Ray Train, dd and numpy, on an idle machine
	$(PIP_INSTALL) -e '.[test,bench]'
	@set -e; for file in $$(grep -l '^BENCH = ' tests/bench/*.py); do \
		$(BIN)/python -m tests.bench.$$(basename $$file .py); done

clean:  ## remove .venv and caches; runs/ and prepared/ are yours and stay
	rm -rf $(VENV) build dist phalanx.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find conf launch model orchestrator tests -name __pycache__ -type d -prune -exec rm -rf {} +
