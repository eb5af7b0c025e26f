# Everything a fresh machine needs besides Python >= 3.11, pip and make lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types unit test-kill test-device test-gpu claims guard pretrain clean

demo: $(READY)          ## run recipes/quickstart.yaml
	$(BIN)/t2i run recipes/quickstart.yaml

test: $(READY) lint types unit   ## lint, type-check and run the test suite

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-kill: $(READY)     ## 100 SIGKILL moments
	$(BIN)/python -m pytest -m kill tests/test_kill.py

test-device: $(READY)   ## all that computes, on a simulated device
	$(BIN)/python -m pytest -m device tests/test_simulated_device.py

test-gpu: $(READY)      ## every family at full size on a CUDA device, in less than 10 minutes
	$(BIN)/python -m pytest -m gpu -rs tests/gpu -s

claims: $(READY)        ## recompute every results table of the README
	$(BIN)/python benchmarks/claims.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/alignment.py

guard: $(READY)         ## recompute the table of over-optimisation in benchmarks/RESULTS.md
	$(BIN)/python benchmarks/guard.py

pretrain: $(READY)      ## retrain the embedded models into t2i/shapes/assets
	$(BIN)/python benchmarks/pretrain.py

# The CPU build of torch comes first, so that nothing else pulls another one in.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist
