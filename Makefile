# Everything runs from a virtual environment that these targets make: `make demo` and
# `make test` need Python 3.11 or newer and nothing else. Another one: make PYTHON=python3.13

PYTHON ?= python3
NEWEST_PYTHON ?= $(shell $(FIND_PYTHON_3_13))
WORKERS ?= 2

# pip is quiet, but its errors are shown.
PIP_INSTALL = -m pip install -qq --disable-pip-version-check
VENV = .venv
NEWEST = .venv-newest
RUN = $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-newest find-newest lint format docs bench clean
# A failed install must not leave a stamp that says it succeeded.
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

demo: $(VENV)/.examples ## train a small classifier on real digits and plot it
	@$(RUN) examples/digits.py

test: $(VENV)/.dev ## the default tests: tests/, docstrings, README and docs
	@$(RUN) -m pytest -q -n $(WORKERS)

test-slow: $(VENV)/.dev ## the tests that take more than about 5 seconds
	@$(RUN) -m pytest -q -n $(WORKERS) -m slow

test-newest: $(NEWEST)/.test ## the default tests on Python 3.13 and jax 0.12 or newer
	@$(NEWEST)/bin/python -m pytest -q -n $(WORKERS)

find-newest: ## print the Python 3.13 that test-newest would use; fail if there is none
	@test -n "$(NEWEST_PYTHON)" || { \
	  echo "Python 3.13 not found; name one: make NEWEST_PYTHON=python3.13 $@" >&2; \
	  exit 1; }
	@echo "$(NEWEST_PYTHON)"

lint: $(VENV)/.dev ## formatting, lint and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/pyright

format: $(VENV)/.dev ## format, and fix what ruff can fix
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format --quiet .

docs: $(VENV)/.dev ## build the site into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "site/index.html"

bench: $(VENV)/.dev ## measure jaxdl beside other libraries: some minutes
	@$(RUN) -m benchmarks.run

clean: ## remove what was built, the virtual environments included
	rm -rf $(VENV) $(NEWEST) .cache .hypothesis .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installing: a stamp newer than pyproject.toml means that nothing is to be done.

$(VENV)/.examples: pyproject.toml | $(VENV)/bin/python
	@echo "installing jaxdl into $(VENV)"
	@$(RUN) $(PIP_INSTALL) -e ".[examples]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing jaxdl and its development tools into $(VENV)"
	@$(RUN) $(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.examples

$(NEWEST)/.test: pyproject.toml | $(NEWEST)/bin/python
	@echo "installing jaxdl and its tests into $(NEWEST)"
	@$(NEWEST)/bin/python $(PIP_INSTALL) -e ".[test]" "jax>=0.12"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "jaxdl needs Python 3.11 or newer, and $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1 || true);" \
	    "name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(NEWEST)/bin/python:
	@$(MAKE) --silent find-newest > /dev/null
	@$(NEWEST_PYTHON) -m venv $(NEWEST)

# On PATH, or among pyenv's: a shim on PATH may exist and yet refuse to run.
define FIND_PYTHON_3_13
for python in python3.13 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13*/bin/python; do \
  "$$python" -c "import sys; sys.exit(sys.version_info[:2] != (3, 13))" 2>/dev/null \
    && echo "$$python" && break; done
endef
