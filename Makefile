# Every target does its own set-up: Python >= 3.11, make and a package index are all it needs.
PYTHON ?= python3
# torch goes in first and by itself, and stays: no other package chooses a build of it.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
KEEP_TORCH := --constraint $(VENV)/torch.txt
OUT := out

.PHONY: demo test lint format clean
.DEFAULT_GOAL := demo

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("pixellm needs Python 3.11 to 3.13; run: make PYTHON=python3.12 ..." if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) "$(TORCH)"
	$(BIN)/python -m pip freeze | grep -E '^torch(==| @)' > $(VENV)/torch.txt
	touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) $(KEEP_TORCH) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP_INSTALL) $(KEEP_TORCH) --editable ".[dev]"
	touch $@ $(VENV)/.core

# One question about the bundled image, answered by the embedded model.
demo: $(VENV)/.core
	@mkdir -p $(OUT)
	@$(BIN)/pixellm segment src/pixellm/examples/coffee.jpg "$$(cat src/pixellm/examples/question.txt)" \
	  --out $(OUT)/demo.png --json $(OUT)/demo.json
	@echo "The image with its masks lies in $(OUT)/demo.png, the answer with run lengths in $(OUT)/demo.json."

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a worker, and waiting threads that do not spin: else the workers hold each other up.
test: lint
	HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

format: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

clean:
	rm -rf $(OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
