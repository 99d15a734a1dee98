# make demo   two small models with and without the branch, and the whole job once; offline, on two CPU cores
# make test   lint, types and all tests, in both environments
# make test-long  the tests that are too long for make test, about five minutes
# make bench  the benchmarks; make bench ARGS="--frames 1 --size 96x160": that of the prior alone, with these options
# make faults   kills, races, threads, damaged files: one table of trials and failures, about five minutes
# make test-ray  extraction with the real Ray on two cores, killed workers included, about three minutes
# make analyse  does a prior know space: table, sweep, read-outs and report on rendered rooms, offline
# make test-libero  OpenVLA-OFT in LIBERO's real simulator, in an environment of its own (10 GB): a quarter of an hour or more
PYTHON ?= python3
MODERN := .venv
CLASSIC := .venv-classic
LIBERO := .venv-libero
RAY := .venv-ray
# Neighbours share fixtures, so each process takes a stretch of the tests and steals when it has none left.
PYTEST := python -m pytest -q -n 2 --dist worksteal

# Several test processes with several threads each are far slower than one thread each.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types test-modern test-classic test-long test-libero test-ray bench faults analyse clean
demo: $(MODERN)/.done
	env -u OMP_NUM_THREADS $(MODERN)/bin/vega3d demo

# One core installs while the other checks types.
test:
	$(MAKE) -j 2 $(CLASSIC)/.done lint types
	$(MAKE) test-modern test-classic

lint: $(MODERN)/.done
	$(MODERN)/bin/ruff check .
	$(MODERN)/bin/ruff format --check .

types: $(MODERN)/.done
	$(MODERN)/bin/mypy

test-ray: $(RAY)/.done
	$(RAY)/bin/python -m pytest -q tests/features/test_extraction_shard.py

test-modern: $(MODERN)/.done
	$(MODERN)/bin/$(PYTEST) -m "not long"

test-long: $(MODERN)/.done
	$(MODERN)/bin/$(PYTEST) -m long

# What calls neither transformers, diffusers nor peft is the same in both environments, and is tested with the newest
# packages alone: these folders, and tests that are marked `once`. The demo's test runs through most of it here too.
ONCE := tests/analysis tests/cli tests/evaluation/metrics tests/evidence tests/scenes tests/storage \
  tests/test_docs.py tests/test_faults.py tests/test_packaging.py
test-classic: $(CLASSIC)/.done
	$(CLASSIC)/bin/$(PYTEST) -m "not once and not long" $(addprefix --ignore=,$(ONCE))

test-libero: $(LIBERO)/.done
	@test -d "$$VEGA3D_HOST_SOURCES/openvla-oft" && test -d "$$VEGA3D_HOST_SOURCES/dlimp_openvla" || { \
	  echo "make test-libero needs VEGA3D_HOST_SOURCES: a folder with the checkouts openvla-oft"; \
	  echo "(github.com/moojink/openvla-oft) and dlimp_openvla (github.com/moojink/dlimp_openvla)."; exit 1; }
	VEGA3D_LIBERO=1 USE_TF=0 $(LIBERO)/bin/python -m pytest -q integration_tests/simulator

bench: $(MODERN)/.done
	$(if $(ARGS),,env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/patch_overhead.py)
	env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/prior_throughput.py $(ARGS)

faults: $(MODERN)/.done
	$(MODERN)/bin/python benchmarks/faults

analyse: $(MODERN)/.done
	env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/analyse.py

# Packages may be installed into both at once; this one is built in its folder, so one after the other.
$(MODERN)/.packages: requirements/modern.txt
	$(PYTHON) -m venv $(MODERN)
	$(MODERN)/bin/pip install -q -r requirements/modern.txt
	touch $@

$(MODERN)/.done: pyproject.toml $(MODERN)/.packages
	$(MODERN)/bin/pip install -q -r requirements/modern.txt -e '.[dev,qwen]'
	touch $@

$(RAY)/.done: pyproject.toml
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install -q -r requirements/modern.txt -e '.[test,qwen,ray]'
	touch $@

$(CLASSIC)/.packages: requirements/classic.txt
	$(PYTHON) -m venv $(CLASSIC)
	$(CLASSIC)/bin/pip install -q -r requirements/classic.txt
	touch $@

$(CLASSIC)/.done: pyproject.toml requirements/classic-unpinned.txt $(CLASSIC)/.packages | $(MODERN)/.done
	$(CLASSIC)/bin/pip install -q -r requirements/classic.txt -e '.[test,qwen]'
	$(CLASSIC)/bin/pip install -q --no-deps -r requirements/classic-unpinned.txt
	touch $@

$(LIBERO)/.done: pyproject.toml requirements/libero.txt
	$(PYTHON) -m venv $(LIBERO)
	$(LIBERO)/bin/pip install -q -r requirements/libero.txt -e . pytest
	$(LIBERO)/bin/pip install -q --no-deps tensorflow-graphics
	touch $@

clean:
	rm -rf $(MODERN) $(CLASSIC) $(LIBERO) $(RAY) demo_out analysis_out build dist *.egg-info
