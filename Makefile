# aludel. `make demo` and `make test` make their own environment in .venv; a second call installs
# nothing. Another Python: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPARE := $(VENV)/.installed-compare
# Only errors are printed: pip's warnings are about pip.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Two at a time, a file to one process: most of the time is compilation, which uses one core.
TESTS := $(BIN)/python -m pytest -c tests/pytest.ini -n 2 --dist loadfile

.PHONY: help demo test test-all lint format clean

help:
	@echo 'make demo      train on text that every machine has, then show what was learnt (minutes)'
	@echo 'make test      the tests, on the CPU and without network'
	@echo 'make test-all  the slow ones too, and comparisons with torch and transformers (a large download)'
	@echo 'make lint      ruff; make format writes its corrections'
	@echo 'make clean     remove the environment and everything built'

demo: $(STAMP)
	@$(BIN)/aludel demo

test: $(STAMP)
	@$(TESTS) -m "not slow" tests

test-all: $(COMPARE)
	@$(TESTS) -m "not slow" tests
	@XLA_FLAGS='--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true' $(TESTS) -m slow tests

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The link serves editors and pytest, which do not see through setuptools' import hook.
$(STAMP): setup.py pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { echo 'aludel needs Python 3.11 or newer: no "$(PYTHON)" here; name one with make PYTHON=...' >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "aludel needs Python 3.11 or newer: \"$(PYTHON)\" is $$("$(PYTHON)" --version 2>&1); name another with make PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo 'aludel needs the module venv: "$(PYTHON)" has none; install it (Debian: the package python3-venv)' >&2; exit 2; }
	@echo 'Installing aludel and its libraries into $(VENV): a minute or two, once.'
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@$(INSTALL) -e '.[dev]'
	@ln -sfn "$(CURDIR)" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/aludel"
	@touch $@

$(COMPARE): $(STAMP)
	@echo 'Installing torch and transformers into $(VENV): more than a gigabyte, once.'
	@$(INSTALL) -e '.[compare]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
