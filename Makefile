# Every target does its own set-up: Python >= 3.11, make and a package index are all it needs.
PYTHON ?= python3
# torch goes in first and by itself, and stays: no other package chooses a build of it.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
KEEP_TORCH := --constraint $(VENV)/torch.txt
OUT := out

.PHONY: demo test lint format fuzz docs package lowest clean
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
	@echo "To type pixellm yourself: source $(BIN)/activate"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread a worker, and waiting threads that do not spin: else the workers hold each other up.
test: lint
	HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Damaged files of every kind; some of them are part of `make test`.
CASES ?= 1000
fuzz: $(VENV)/.dev
	HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=1000 OMP_NUM_THREADS=1 PIXELLM_FUZZ_CASES=$(CASES) \
	  $(BIN)/python -m pytest tests/fuzz -n 2 --dist load

format: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

# The site in out/site; a broken link or anchor is an error.
docs: $(VENV)/.torch
	$(PIP_INSTALL) $(KEEP_TORCH) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open $(OUT)/site/index.html"

# Wheel and source package in dist/, checked, and the wheel tried in an environment of its own.
package: $(VENV)/.torch
	$(PIP_INSTALL) build twine
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	rm -rf $(OUT)/package && $(PYTHON) -m venv $(OUT)/package
	$(OUT)/package/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(OUT)/package/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd $(OUT)/package && bin/python -m pixellm segment "$(CURDIR)/src/pixellm/examples/coffee.jpg" "Where are the table and the cup?" --out answer.png
	cd $(OUT)/package && echo '{"image": "answer.png", "turns": [{"question": "What?", "answer": "A cup."}]}' > \
	  dialogue.jsonl && bin/python -m pixellm data preview dialogue.jsonl --out preview

# The whole suite with the lowest versions that pyproject.toml declares (torch by TORCH=...).
lowest:
	rm -rf $(OUT)/lowest && $(PYTHON) -m venv $(OUT)/lowest
	$(OUT)/lowest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PYTHON) tests/lowest_versions.py > $(OUT)/lowest.txt
	$(OUT)/lowest/bin/python -m pip freeze | grep -E '^torch(==| @)' >> $(OUT)/lowest.txt
	$(OUT)/lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(OUT)/lowest.txt --editable ".[dev]"
	HF_HUB_OFFLINE=1 GOMP_SPINCOUNT=1000 OMP_NUM_THREADS=1 \
	  $(OUT)/lowest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf dist $(OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
