# What there is to make: make help.

.DELETE_ON_ERROR:
.PHONY: setup help demo notebook test test-slow lint format bench clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TYPECHECK := build/typecheck
PACKAGES := hkdpipe manifests trainer stages pipeline

# The interpreter given, or the first of these that runs and is new enough.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

setup: $(STAMP)  ## .venv with hkdpipe and its tools; PYTHON=... chooses the interpreter

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml setup.py constraints.txt
	@if ! { $(BIN)/python -c '$(NEW_ENOUGH)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
		python=; for candidate in $(CANDIDATES); do \
			if $$candidate -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "setup: no Python 3.11 or newer (tried: $(CANDIDATES)); name one: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "setup: $(VENV) with $$($$python --version)"; \
		rm -rf $(VENV); \
		if ! $$python -m venv $(VENV); then \
			echo "setup: '$$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
			rm -rf $(VENV); \
			exit 1; \
		fi; \
	fi
	@# uv is only the faster installer; where it cannot be had, or fails, pip does the same.
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; then \
		$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]' && exit 0; \
	fi; \
	echo "setup: installing with pip instead of uv"; \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## the whole method on handwritten digits, in runs/digits
	$(BIN)/hkdpipe run --preset digits --run-dir runs/digits

# Without the times of execution, which would differ each time.
notebook: setup  ## the notebooks, executed; docs/whitebox.ipynb needs the demo's model
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	@set -e; for notebook in docs/whitebox.ipynb examples/koopman_in_2d.ipynb; do \
		(cd $$(dirname $$notebook) && ../$(BIN)/python -c 'import sys, nbclient, nbformat; \
			notebook = nbformat.read(sys.argv[1], 4); \
			nbclient.NotebookClient(notebook, record_timing=False).execute(); \
			nbformat.write(notebook, sys.argv[1])' $$(basename $$notebook)); \
	done

test: setup lint  ## linters, type checks and the test suite
	$(BIN)/pytest -q -m "not slow"

test-slow: setup  ## the tests that take minutes
	$(BIN)/pytest -q -m slow

lint: setup  ## ruff, mypy and hadolint, which change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy cannot follow the import hook of the editable install; this tree shows it the packages by their names.
	@rm -rf $(TYPECHECK) && mkdir -p $(TYPECHECK)/hkdpipe
	@for file in hkdpipe/*.py; do ln -s "$(CURDIR)/$$file" $(TYPECHECK)/hkdpipe; done
	@for floor in $(filter-out hkdpipe,$(PACKAGES)); do ln -s "$(CURDIR)/$$floor" $(TYPECHECK)/hkdpipe; done
	MYPYPATH=$(TYPECHECK) $(BIN)/mypy --config-file pyproject.toml -p hkdpipe
	$(BIN)/hadolint Dockerfile

format: setup  ## ruff's formatting and repairs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## the measurements of tests/benchmarks
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script"; done

# Results, in runs/, are kept.
clean:  ## no .venv, no caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
