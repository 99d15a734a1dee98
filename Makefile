# make demo   two small models with and without the branch, and the whole job once; offline, on two CPU cores
# make test   lint, types and all tests, in both environments
# make bench  the benchmarks
# make faults   kills, races, threads, damaged files: one table of trials and failures, about five minutes
# make analyse  does a prior know space: table, sweep, read-outs and report on rendered rooms, offline
PYTHON ?= python3
MODERN := .venv
CLASSIC := .venv-classic
PYTEST := python -m pytest -q -n 2

# Several test processes with several threads each are far slower than one thread each.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types test-modern test-classic bench faults analyse clean
demo: $(MODERN)/.done
	env -u OMP_NUM_THREADS $(MODERN)/bin/vega3d demo

test: lint types test-modern test-classic

lint: $(MODERN)/.done
	$(MODERN)/bin/ruff check .
	$(MODERN)/bin/ruff format --check .

types: $(MODERN)/.done
	$(MODERN)/bin/mypy

test-modern: $(MODERN)/.done
	$(MODERN)/bin/$(PYTEST)

test-classic: $(CLASSIC)/.done
	$(CLASSIC)/bin/$(PYTEST)

bench: $(MODERN)/.done
	env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/patch_overhead.py
	env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/prior_throughput.py

faults: $(MODERN)/.done
	$(MODERN)/bin/python benchmarks/faults

analyse: $(MODERN)/.done
	env -u OMP_NUM_THREADS $(MODERN)/bin/python benchmarks/analyse.py

$(MODERN)/.done: pyproject.toml requirements/modern.txt
	$(PYTHON) -m venv $(MODERN)
	$(MODERN)/bin/pip install -q -r requirements/modern.txt -e '.[dev,qwen]'
	touch $@

$(CLASSIC)/.done: pyproject.toml requirements/classic.txt requirements/classic-unpinned.txt
	$(PYTHON) -m venv $(CLASSIC)
	$(CLASSIC)/bin/pip install -q -r requirements/classic.txt -e '.[test,qwen]'
	$(CLASSIC)/bin/pip install -q --no-deps -r requirements/classic-unpinned.txt
	touch $@

clean:
	rm -rf $(MODERN) $(CLASSIC) demo_out analysis_out build dist *.egg-info
