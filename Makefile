# Two commands on a fresh machine: `make demo` and `make test`.
# Each makes .venv and installs proav first, unless that is done.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Hundreds of processes import proav. The first one writes its bytecode, even if the environment forbids that.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-slow lint install clean

demo: $(INSTALLED)
	$(BIN)/python ray_jobs/demo.py $(ARGS)

# Two files of tests at a time, for two cores; three were not faster.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) lint
	$(PYTEST) -m "not slow" $(ARGS)

# The few tests that take about half of the time: whole jobs, sweeps and clusters. CI runs both.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow $(ARGS)

# What must be so before tests are worth their time: a second or two.
lint: $(INSTALLED)
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m ruff format --check --quiet .

install: $(INSTALLED)

TOO_OLD = proav needs Python 3.11 or newer; this is {sys.version.split()[0]}. \
  Type: make PYTHON=python3.12 $(MAKECMDGOALS)

# Made anew when pyproject.toml changes.
# pip takes what this machine can use of torch: a build without CUDA where one is offered.
$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(f"$(TOO_OLD)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
