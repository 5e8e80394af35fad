# make demo   the main job on the embedded images, from a fresh machine; says where the page is
# make test   every test, from a fresh machine
# make setup  .venv with every extra and the test tools; quick when nothing changed
# make keras  the tests of the Keras side alone, on each backend in turn
# make lint types fmt unit bench docs clean

PYTHON ?= python3
OUT ?= demo
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet --constraint constraints.txt

# Each backend of Keras in a process of its own; the paths are those that conftest.py keeps from the others.
BACKENDS ?= tensorflow jax torch
KERAS := tests/keras src/mednorm/keras src/mednorm/surgery/port.py

.PHONY: demo setup test keras unit lint types fmt bench docs schema clean

demo: .venv/.study
	$(BIN)/mednorm study tissue --preset quick --out $(OUT)

setup: .venv/.setup

test: .venv/.setup
	$(PYTEST)
	@$(MAKE) --no-print-directory keras

keras: .venv/.setup
	@for backend in $(BACKENDS); do \
	    echo "Keras on $$backend:"; \
	    KERAS_BACKEND=$$backend TF_CPP_MIN_LOG_LEVEL=2 $(PYTEST) --dist worksteal $(KERAS) || exit 1; \
	done

unit: .venv/.setup
	$(PYTEST) -m "not slow" tests/unit tests/properties tests/docs src

lint: .venv/.setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.setup
	$(BIN)/mypy

fmt: .venv/.setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Everything that docs show of times, 25 minutes; `make bench PARTS=steps` for one part. Best with nothing else running.
PARTS ?= startup layers steps allocators inference statistics family
bench: .venv/.setup
	@for part in $(PARTS); do \
	    $(BIN)/mednorm bench $$part --overwrite --out benchmarks/results/$$part.json || exit 1; \
	done
	$(BIN)/python benchmarks/fine_tuning.py
	$(BIN)/python benchmarks/keras_layers.py

docs: schema
	$(BIN)/python docs/render.py

schema: .venv/.setup
	$(BIN)/python -m mednorm.results > docs/reference/results.schema.json
	$(BIN)/python -c "from mednorm.examine.schema import json_schema; print(json_schema(), end='')" \
	    > docs/reference/examination.schema.json

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What the study needs, and no test tools: a fresh machine waits for less.
.venv/.study: pyproject.toml constraints.txt
	@echo "Setting up .venv: PyTorch, MONAI, Lightning and what they need; two to four minutes …"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
	    { rm -rf .venv; echo "$(PYTHON) -m venv failed: on Debian, apt-get install python3-venv"; exit 1; }
	$(PIP) --editable ".[study]"
	@touch $@

.venv/.setup: .venv/.study
	@echo "Adding the test tools and every extra …"
	$(PIP) --editable ".[study,tensorboard,keras,dev]"
	@$(BIN)/python -m mednorm.kernels
	@touch $@
