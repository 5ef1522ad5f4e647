# Every target sets up first; that takes no time when nothing has changed.
# Options of the set-up: make setup SETUP="--no-vllm --python python3.12"
PYTHON ?= python3
SETUP ?=
BIN := .venv/bin

.PHONY: setup demo test test-fast check bench docs

setup:
	@$(PYTHON) cluster/install.py $(SETUP)

demo: setup
	$(BIN)/raysys demo

# All that this machine can run; what it cannot is skipped with its reason.
test: setup
	$(BIN)/python -m pytest -m "" -rs

test-fast: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .

bench: setup
	for name in metrics world serve ctr-train cofars-cost; do $(BIN)/raysys bench $$name --json || exit 1; done

# The documents are plain Markdown; what can break in them is a link.
docs: setup
	$(BIN)/python -m pytest tests/unit/test_docs_links.py
