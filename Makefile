# make demo: the whole method on handwritten digits, in runs/digits
# make test: linters, type checks and the test suite
# make notebook: docs/whitebox.ipynb, executed with the demo's model
# make setup: a virtual environment with hkdpipe and its tools in .venv; PYTHON=... chooses the interpreter

.DELETE_ON_ERROR:
.PHONY: setup demo notebook test test-slow lint bench clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TYPECHECK := build/typecheck
PACKAGES := manifests trainer stages pipeline

# The interpreter given, or the first of these that runs and is new enough.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
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

demo: setup
	$(BIN)/hkdpipe run --preset digits --run-dir runs/digits

# Without the times of execution, which would differ each time.
notebook: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	cd docs && ../$(BIN)/python -c 'import nbclient, nbformat; \
		notebook = nbformat.read("whitebox.ipynb", 4); \
		nbclient.NotebookClient(notebook, record_timing=False).execute(); \
		nbformat.write(notebook, "whitebox.ipynb")'

test: setup lint
	$(BIN)/pytest -q -m "not slow"

test-slow: setup
	$(BIN)/pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy cannot follow the import hook of the editable install; this tree shows it the packages by their names.
	@mkdir -p $(TYPECHECK)/hkdpipe
	@for package in $(PACKAGES); do ln -sfn "$(CURDIR)/$$package" $(TYPECHECK)/hkdpipe/$$package; done
	MYPYPATH=$(TYPECHECK) $(BIN)/mypy --config-file pyproject.toml -p hkdpipe
	$(BIN)/hadolint Dockerfile

bench: setup
	@set -e; for script in tests/benchmarks/bench_*.py; do echo "$$script"; $(BIN)/python "$$script"; done

# Results, in runs/, are kept.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
