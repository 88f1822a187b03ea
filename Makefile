# Two commands set up and prove everything: `make demo` and `make test`. Each makes its own environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint type format snapshots peers clean

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

.venv/demo: EXTRAS := demo
.venv/test: EXTRAS := test,lint

demo: .venv/demo
	$(BIN)/python examples/demo.py

test: lint type
	$(BIN)/python -m pytest

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: .venv/test
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After a change of an op that changes its results (raise its `version` first), of explain() or of a repr.
snapshots: .venv/test
	$(BIN)/python tests/snapshot/test_op_versions.py
	$(BIN)/python tests/snapshot/test_text.py
	$(BIN)/python tests/snapshot/test_html.py
	$(BIN)/python docs/build_operations.py
	$(BIN)/python docs/build_reference.py
	$(BIN)/python tests/snapshot/test_mistakes.py

# What the benchmarks compare with and tests do not need, apart from it: run_all.py --volara-python .venv-peers/bin/python
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -e ".[bench-peers]"

clean:
	rm -rf .venv .venv-peers demo_out
