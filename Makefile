# Each target sets itself up: a virtual environment with the project in it.
PYTHON ?= python3
VENV ?= .venv
INSTALLED = $(VENV)/.installed

.PHONY: demo test slow lint docs clean

demo: $(INSTALLED)
	$(VENV)/bin/diffprune demo

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .ci-venv build dist site .mypy_cache .pytest_cache .ruff_cache
