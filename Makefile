# make ablation: one command to the accuracy-versus-cost figure. make test: everything CI runs. make oldest: the tests with the
# oldest torch that octnet supports (CI doesn't: another environment of several GB).
# Needs make and Python >= 3.11 with venv; `make PYTHON=python3.12 …` picks another.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: ablation test oldest format clean
.DELETE_ON_ERROR:

ablation: .venv/installed
	$(BIN)/python train.py -m experiment=ablation

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest

oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest

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

.venv-oldest/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	sed 's/^torch==.*/torch==2.11.0/; s/^torchvision==.*/torchvision==0.26.0/' requirements.txt > .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-oldest/requirements.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache *.egg-info
