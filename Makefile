.DEFAULT_GOAL := help
.PHONY: help venv demo test browser check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:  ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

venv: $(STAMP)  ## Create .venv with the locked dependencies and mtad itself

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; found = "%d.%d" % sys.version_info[:2]; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "mtad needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is Python " + found + "; name another one, for example: make venv PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies into $(VENV); this takes a few minutes the first time."
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)  ## Generate a short answer with the default pair
	$(BIN)/mtad generate "Explain why the sky is blue." --seed 1

test: export HF_HUB_OFFLINE = 1
test: $(STAMP)  ## Run every test that needs no GPU and no browser
	$(BIN)/python -m pytest -m "not gpu and not browser" -n auto --maxprocesses 4 --dist loadfile

browser: export HF_HUB_OFFLINE = 1
browser: $(STAMP)  ## Run the tests of the playground, which need Chromium
	$(BIN)/python -m pytest -m browser tests/browser

check: $(STAMP)  ## Check format, lint, types and the walls between the rooms
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the code and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## Remove .venv and everything generated
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
