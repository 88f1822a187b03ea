# Two commands set up and prove everything: `make demo` and `make test`. Each makes its own environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint type clean

.venv/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

.venv/test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	touch $@

demo: .venv/demo
	$(BIN)/python examples/demo.py

test: .venv/test lint type
	$(BIN)/python -m pytest

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: .venv/test
	$(BIN)/mypy

clean:
	rm -rf .venv demo_out
