# The two commands that a newcomer needs: `make demo` and `make test`. Each sets up .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test lint format clean

demo: $(STAMP)
	$(BIN)/python -m examples.digits_mobilenet

# One thread a worker: more would wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHON=$(BIN)/python sh .ci/typecheck

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchvision's dependency on torch is left to the pinned one: its own would pull another build.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard fxq/engine/csrc/* fxq/nn/kernels/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fxq needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchvision pillow
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .typecheck diagrams
