# The README's commands. Everything happens in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# What starts no Ray of its own can be tested side by side.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist worksteal

.PHONY: ablate test check smoke ui install

ablate: install ## the main job: the whole grid, three seeds, then the report
	$(RUN) -m ablate.run --grid full

smoke: install ## two cells, a few steps: does everything work here?
	$(RUN) -m ablate.run --grid smoke

test: install ## the default tests
	$(RUN) -m pytest -q $(SIDE_BY_SIDE)

check: install ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

ui: install ## the MLflow UI on loopback
	$(RUN) -m ablate ui

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "coca-blocks needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 2; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
