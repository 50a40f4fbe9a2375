# The only chores. CI calls the same names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# Each stamp stands for a set of extras that is installed; the full set contains the others.
DEMO := $(VENV)/.demo-ready
FAST := $(VENV)/.fast-ready
READY := $(VENV)/.ready
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
GPU_CHECK := .tools/gpu-check
PROMTOOL := .tools/prometheus/usr/bin/promtool
# Loopback is never behind a proxy.
export NO_PROXY := localhost,127.0.0.1,$(NO_PROXY)

.PHONY: help setup demo serve test test-fast test-zoo test-gpu gpu-check stubs docs lint format proto bench bench-more clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## .venv with everything that the other targets need

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[parquet,explore,torch,clip,hf,demo,dev]'
	touch $(DEMO) $(FAST) $@

# No torch: under 1 GB.
$(DEMO): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[demo]'
	touch $@

$(FAST): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[parquet,explore,text,demo,dev]'
	touch $(DEMO) $@

demo: $(DEMO) ## start a server, embed sample photographs, print what is alike
	$(BIN)/python examples/demo.py

serve: $(DEMO) ## serve the default model on :50051 (gRPC) and :9090 (metrics)
	$(BIN)/pixvec-server serve

# What is tested under load, and by the clock, has the machine to itself.
test: $(READY) $(PROMTOOL) ## every test; JOBS=1: one file after the other
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/chaos --durations=20
	$(BIN)/python -m pytest tests/chaos

test-fast: $(FAST) ## the unit tests but the slow ones, in a minute; torch is not needed
	$(BIN)/python -m pytest tests/unit -m "not slow" -n $(JOBS) --dist loadfile

test-zoo: $(READY) ## every preset with random weights on three engines: hours; writes docs/zoo.md
	PYTHONPATH=. $(BIN)/python -m bench.zoo

test-gpu: $(READY) ## the tests that need a CUDA device (docs/gpu.md)
	$(BIN)/python -m pytest -m gpu

gpu-check: $(READY) $(GPU_CHECK)/.ready ## is all but the driver there for onnxruntime on CUDA? Needs no GPU
	$(GPU_CHECK)/bin/python bench/gpu_check.py $(GPU_CHECK)/onnxruntime_gpu-*.whl \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# The wheel is unpacked, never installed into .venv: it owns the module `onnxruntime` too.
$(GPU_CHECK)/.ready: constraints.txt | $(READY)
	test -x $(GPU_CHECK)/bin/python || $(PYTHON) -m venv $(GPU_CHECK)
	$(GPU_CHECK)/bin/python -m pip install -q --disable-pip-version-check pyelftools==0.33
	rm -rf $(GPU_CHECK)/onnxruntime_gpu-*
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps -d $(GPU_CHECK) \
	  "onnxruntime-gpu==$$(sed -n 's/^onnxruntime==//p' constraints.txt)"
	touch $@

stubs: $(READY) ## Go and Java stubs of the contract into build/gen
	proto/plugins.sh generators
	cd proto && PATH="$(CURDIR)/.tools/stubs/bin:$$PATH" ../$(BIN)/buf generate -o ../build

docs: $(READY) ## write docs/models.md from the catalogue
	$(BIN)/python -c 'from pixvec_server import listing; print(listing.markdown(), end="")' > docs/models.md

lint: $(READY) ## ruff, mypy, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd proto && ../$(BIN)/buf lint

format: $(READY) ## let ruff write the code's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: ## regenerate client/pixvec/v1 from proto/
	proto/generate.sh

bench: $(READY) ## against Triton, mosec, LitServe and a bare loop: one table, one picture; half an hour
	PYTHONPATH=tests $(BIN)/python -m bench.compare

bench-more: $(READY) ## the SDK's runs, datasets, fidelity, overload, two targets, overhead, memory, the explorer; an hour
	for part in runs dataset fidelity overload two_targets overhead frontends memory explorer; do \
		PYTHONPATH=tests $(BIN)/python -m bench.$$part || exit; done

clean: ## remove what the other targets made, .venv too
	rm -rf $(VENV) .tools build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Debian's own package, unpacked beside the project; elsewhere the one test that needs it says so and skips.
$(PROMTOOL):
	mkdir -p .tools/prometheus
	@if command -v promtool >/dev/null || ! command -v apt-get >/dev/null; then exit 0; fi; \
	cd .tools && { apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }; } \
	  && dpkg -x prometheus_*.deb prometheus && rm prometheus_*.deb || echo "promtool could not be had: its test skips"
