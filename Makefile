# Handbill's commands. `make demo` and `make test` need Python 3.11, Node with npm, and the package registries; nothing
# else has to be there before. What is done once stays: .venv/, .cache/, models/, dist/.

MODEL := smollm2-135m
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
# Installed first and by its version. Where pip is told of PyTorch's CPU wheels (pip's own configuration, or
# PIP_EXTRA_INDEX_URL), it takes those; else on Linux it takes the CUDA build, which works too but weighs gigabytes.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
NPM_TESTS := $(patsubst %/package.json,%/node_modules/.package-lock.json,$(wildcard tests/*/package.json tests/bench/*/package.json))

# $(call apt,package,sentence): install a Debian package where that is allowed, or say what is missing and stop.
apt = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update && \
	apt-get install --yes --no-install-recommends $(1); } || { echo "make: $(2)" >&2; exit 1; }

export DEBIAN_FRONTEND := noninteractive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-gemma site model lint bench soak bench-webgpu bench-export bench-quantization clean chromium

help:
	@echo "make demo   export $(MODEL), assemble the site, check it, serve it and print its address"
	@echo "make test   everything that the tests need, then ruff, mypy and pytest"
	@echo "make test-gemma  export gemma-3-270m, some minutes, and run the tests that make test skips without it"
	@echo "make site   assemble and check dist/ from what is in models/"
	@echo "make lint   ruff and mypy alone"
	@echo "make bench  measure against peers, some twenty minutes; figures go to tests/bench/results/"
	@echo "make bench-export  the export of a 2.5 B parameter model: time, memory, size, and the same bytes twice"
	@echo "make bench-quantization  methods and budgets against each other on a dithered copy of $(MODEL), some twenty minutes"
	@echo "make bench-webgpu  WebGPU against transformers.js; without a graphics chip: make bench-webgpu CHIP=--swiftshader"
	@echo "make soak   500 conversations in one tab and the memory they take; the curve goes to tests/bench/results/"
	@echo "make clean  remove dist/ and the caches; models/ and .venv/ stay"

demo: site
	@$(BIN)/python serve.py

# Files of tests side by side. One thread each for torch: several pools of threads on the same cores wait for each other.
test: lint chromium $(NPM_TESTS) site
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# dist/ is assembled before: its own tests are about $(MODEL).
test-gemma: .venv/test-stamp chromium $(NPM_TESTS) site models/gemma-3-270m/manifest.json
	$(BIN)/pytest -m model -k gemma

lint: .venv/test-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: .venv/stamp model
	@$(BIN)/python build/assemble.py
	@$(BIN)/python build/check.py

model: models/$(MODEL)/manifest.json

# The exporter writes the manifest last, so its existence means that the export is whole.
models/%/manifest.json: | .venv/stamp
	$(BIN)/python exporter/export.py $*

.venv/stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "make: Python 3.11 is needed, and '$(PYTHON)' is not it: install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v npm >/dev/null || { echo "make: npm is needed: install Node 20 or newer" >&2; exit 1; }
	@$(PYTHON) -m ensurepip --version >/dev/null 2>&1 || $(call apt,python3.11-venv,Python's venv and ensurepip are missing: install the package python3.11-venv)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install --editable .
	@touch $@

.venv/test-stamp: .venv/stamp
	$(BIN)/pip install --editable '.[test]'
	@touch $@

tests/%/node_modules/.package-lock.json: tests/%/package.json tests/%/package-lock.json
	cd tests/$* && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

# Playwright drives the system's Chromium; a browser of its own would have to come from outside the registries.
chromium:
	@command -v chromium >/dev/null || $(call apt,chromium,the page tests need Chromium: install it or run make as root on a machine with apt)

bench: .venv/test-stamp chromium tests/bench/peers/node_modules/.package-lock.json site
	$(BIN)/pip install --editable '.[bench]'
	cd tests/bench && for part in cpu/speed cpu/fidelity cpu/drafts cpu/tab export model_table quantization_report cpu/report single; do ../../$(BIN)/python $$part.py || exit 1; done

# The export of gemma-2b's shape with random weights, twice: about 4 minutes, 6 GB of memory, 12 GB of disk.
bench-export: .venv/test-stamp
	cd tests/bench && ../../$(BIN)/python export.py gemma-2b --twice && for part in model_table quantization_report; do ../../$(BIN)/python $$part.py || exit 1; done

bench-quantization: .venv/test-stamp
	$(BIN)/python tests/bench/quantization.py

bench-webgpu: .venv/test-stamp chromium tests/bench/peers/node_modules/.package-lock.json site
	$(BIN)/python tests/bench/webgpu/gpu_bench.py $(CHIP)
	$(BIN)/python tests/bench/disposal.py

soak: .venv/test-stamp chromium site
	$(BIN)/pip install --editable '.[bench]'
	$(BIN)/python tests/bench/soak.py

clean:
	rm -rf dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
