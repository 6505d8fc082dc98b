# Every target makes the virtual environment first, if there is none.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?= -q
BIN := $(VENV)/bin

.PHONY: quickstart smoke test test-slow lint types clean

$(BIN)/.installed: setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(BIN)/python -m pip install $(PIP_FLAGS) -e ".[dev]"
	@touch $@

quickstart: $(BIN)/.installed  ## train, evaluate and report on the starter pack
	$(BIN)/onellm quickstart --out quickstart

smoke: $(BIN)/.installed  ## the same in miniature
	$(BIN)/onellm quickstart --preset smoke --out quickstart-smoke --no-resume

test: $(BIN)/.installed  ## the test suite
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(BIN)/.installed  ## full-width checks
	$(BIN)/python -m pytest -m slow

lint: $(BIN)/.installed
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(BIN)/.installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info quickstart quickstart-smoke
