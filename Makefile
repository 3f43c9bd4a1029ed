# make study and make test set themselves up: python3 (3.11 or newer), venv and make are all they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Two processes, a core each; tests that share what is costly to make stay in one of them (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

NVFLARE := .venv-nvflare

.PHONY: help study test test-all lab lint format bench lock clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("python3 is %d.%d, expected 3.11 or newer; set PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Two notebooks at a time, a core each: these models are too small to keep two cores busy alone.
study: $(READY)  ## both tasks on synthetic images, then open reports/quick/index.html
	$(BIN)/python -m fedlib study --jobs 2

test: $(READY)  ## what must hold before a commit (a few minutes)
	$(PYTEST) -m "not slow"

# The rooms whose tests train, once more as on an old processor: other kernels, other last digits, the same conclusions.
TRAINS := tests/course tests/federated tests/notebooks tests/study tests/tasks tests/training tests/test_recipe.py
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

test-all: test  ## everything: make test, then the slow ones, then what trains as on an old processor
	$(PYTEST) -m slow
	$(OLD_PROCESSOR) $(PYTEST) -m "not slow" $(TRAINS)

lab: $(READY)  ## JupyterLab in notebooks/; more options: make lab LAB='--port 9999'
	cd notebooks && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

lint: $(READY)  ## style, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

format: $(READY)  ## put code and notebooks in style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb

# NVFlare asks for other versions than ours: it is only measured against, from an environment of its own.
$(NVFLARE):
	$(PYTHON) -m venv $(NVFLARE)
	$(NVFLARE)/bin/python -m pip install --quiet nvflare==2.9.0 torch==2.13.0 monai==1.6.1 || { rm -r $(NVFLARE); exit 1; }

bench: $(READY) $(NVFLARE)  ## speed, as ratios measured side by side; writes reports/bench/
	$(BIN)/python -m tests.bench.training
	$(BIN)/python -m tests.bench.threads
	$(BIN)/python -m tests.bench.federation
	$(BIN)/python -m tests.bench.contenders
	$(BIN)/python -m tests.bench.preparation
	$(BIN)/python -m tests.bench.notebooks
	$(BIN)/python -m tests.bench.study
	$(BIN)/python -m tests.bench.guard

lock: $(READY)  ## write the versions of this environment into constraints.txt
	@(head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.tmp
	@mv constraints.tmp constraints.txt

clean:  ## remove the environment and all results
	rm -rf $(VENV) $(NVFLARE) *.egg-info reports/smoke reports/quick reports/paper reports/bench
