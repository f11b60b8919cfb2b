# make ablation: one command to the accuracy-versus-cost figure. make test: everything CI runs.
# Needs make and Python >= 3.11 with venv; `make PYTHON=python3.12 …` picks another.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: ablation test format clean
.DELETE_ON_ERROR:

ablation: .venv/installed
	$(BIN)/python train.py -m experiment=ablation

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "octnet needs Python >= 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing requirements.txt into .venv (several GB, once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
