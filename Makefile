# Two commands: `make train` watches a network learn, `make test` checks everything.
# Both make their own virtual environment; only Python 3.10+ and make are needed.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: train train-distributed test slow docs format clean

train: $(VENV)/.installed-train
	$(BIN)/seng train digits --out $(OUT) --overwrite

train-distributed: $(VENV)/.installed-train
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 \
		-m seng train digits --out $(OUT)-distributed --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(WORKERS) --cov --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95

slow: $(VENV)/.installed-dev
	$(BIN)/pytest --slow -n $(WORKERS)

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]' -c constraints.txt
	touch $@
