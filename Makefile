# Everything goes through `make setup`: .venv with the package, its extras and the pinned torch in it.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: setup demo test fast lint check bench docs clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,lm,export]'
	touch $@

demo: setup ## train a small language model on the standard library's sources
	$(BIN)/trn data text --out demo/data
	$(BIN)/trn run --config examples/lm/stdlib.yaml --runs-dir demo/runs

test: setup ## every test, the slow ones too
	$(PYTEST)

fast: setup ## under two minutes: for every edit
	$(PYTEST) -m 'not slow'

lint: setup ## format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint fast ## one command for everything but the slow tests

bench: setup ## what we claim about speed, twenty minutes; BENCH=--quick: some minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mlp_loop.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trainer_step.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/own_loop.py $(BENCH)
	$(BIN)/trn data text --out demo/data
	$(BIN)/python benchmarks/lm_loop.py $(BENCH)
	$(BIN)/python benchmarks/lm_hf.py $(BENCH)
	$(BIN)/python benchmarks/checkpoint.py $(BENCH)
	$(BIN)/python benchmarks/startup.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/jobs.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sinks.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/feed.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/handover.py $(BENCH)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python benchmarks/uploads.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/worker.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/export.py $(BENCH)

docs: setup ## write what of the docs follows from the code; a test says when it is due
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate.py

clean:
	rm -rf .venv demo
