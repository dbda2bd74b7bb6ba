# The two commands of the README are `make demo` and `make test`; the others are for those who work on it.
# Everything is installed into .venv, and stamp files make a second run start at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
SOURCES := $(wildcard snex_node snex_runtime snex tests examples benchmarks docs)
PYTEST_ARGS ?=
# A file of tests is one process's. More processes than processors would hold up tests of times, but
# for one more that runs what waits. Tests that run alone mostly wait for one process to end.
PROCESSORS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
PYTEST_PROCESSES ?= $(shell expr $(PROCESSORS) + 1)
ALONE_PROCESSES ?= $(shell expr 2 \* $(PROCESSORS))
# PYTEST_ARGS may choose tests of one kind only; without them there are some of each.
NONE_CHOSEN = { [ $$? -eq 5 ] && [ -n "$(PYTEST_ARGS)" ]; }
# What fails runs once more by itself, and it is told: what passes only then depends on what ran beside
# it. A run that failed for another reason than its tests stays what it was.
UNSTEADY = ===== what failed above runs once more, by itself; what passes now is unsteady: repair it =====
AGAIN = { echo "$(UNSTEADY)"; false; } || $(BIN)/python -m pytest --timeout 300 --last-failed --last-failed-no-failures none
COMPAT_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
# A run of some of the tests cannot cover every module.
COVERAGE = $(if $(PYTEST_ARGS),,--coverage-by-file)
# Each of the hundreds of Pythons that tests start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test static lint format typecheck pytest beside others elixir docs compat bench bench-quick soak dist clean system-packages

help:
	@echo "make demo     start a node, evaluate Python on it from Elixir (or from a second node)"
	@echo "make test     linters, types and every test; installs what they need"
	@echo "make format   write the formatting that 'make test' checks"
	@echo "make elixir   the tests of the Elixir client"
	@echo "make docs     the documentation site, in build/site"
	@echo "make compat   every test on other OTP, Elixir and Python releases (root, Debian)"
	@echo "make bench    what calls, data and environments cost, in six minutes (bench-quick: in one)"
	@echo "make soak     all that can befall workers and pools, at random, for ten minutes each"
	@echo "make dist     source distribution and wheel, in dist/"
	@echo "make clean    remove what these commands made"

demo: $(VENV)/.stamp-package
	@$(BIN)/snex-node demo

# The tests of the client wait for most of their time, so what is about no times runs beside them. What
# each says comes in one piece.
TOGETHER = --no-print-directory --jobs=3 $(if $(filter output-sync,$(.FEATURES)),--output-sync)

test: system-packages
	@$(MAKE) $(TOGETHER) static elixir beside
	@$(MAKE) --no-print-directory others

static: lint typecheck

lint: $(VENV)/.stamp-dev
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

format: $(VENV)/.stamp-dev
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

typecheck: $(VENV)/.stamp-dev
	@$(BIN)/mypy $(SOURCES)

pytest: beside others

# They run whole commands, beside much else: a time limit there is for what hangs. Code on pages of
# the site has modules with a Python environment, which uv makes.
beside: $(VENV)/.stamp-dev $(VENV)/.stamp-uv
	@$(BIN)/python -m pytest --timeout 300 --numprocesses $(PROCESSORS) --dist loadfile -m beside $(PYTEST_ARGS) || $(NONE_CHOSEN) || $(AGAIN) -m beside $(PYTEST_ARGS)

others: $(VENV)/.stamp-dev
	@$(BIN)/python -m pytest --numprocesses $(PYTEST_PROCESSES) --dist loadfile --no-loadscope-reorder --one-for-waiting -m 'not alone and not beside' $(COVERAGE) $(PYTEST_ARGS) || $(NONE_CHOSEN) || $(AGAIN) -m 'not alone and not beside' $(PYTEST_ARGS)
	@$(BIN)/python -m pytest --numprocesses $(ALONE_PROCESSES) -m alone $(PYTEST_ARGS) || $(NONE_CHOSEN) || $(AGAIN) -m alone $(PYTEST_ARGS)

# A BEAM that waits leaves the processors to what it waits for.
QUIET = +sbwt none +sbwtdcpu none +sbwtdio none

# The client is tested on a port of its own for epmd, so that it is alone with its nodes.
elixir: system-packages $(VENV)/.stamp-uv
	@cd elixir && mix format --check-formatted && PATH="$(CURDIR)/$(BIN):$$PATH" MIX_ENV=test \
		mix compile --warnings-as-errors && \
		PATH="$(CURDIR)/$(BIN):$$PATH" ERL_FLAGS="$(QUIET) $$ERL_FLAGS" \
		ERL_EPMD_PORT=$$($(CURDIR)/$(BIN)/python -c \
			'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])') \
		sh -c 'mix test || { echo "$(UNSTEADY)"; mix test --failed; }'

# Every warning is an error. The reference of the client is made of its compiled code.
docs: system-packages $(VENV)/.stamp-docs
	@$(BIN)/python -m sphinx -W --keep-going -n -q -b html -d build/doctrees docs build/site
	@echo "The site is in build/site: open build/site/index.html"

compat:
	@tests/compat/run $(COMPAT_ARGS)

bench: system-packages $(VENV)/.stamp-charts
	@$(BIN)/python -m benchmarks run $(BENCH_ARGS)

bench-quick: system-packages $(VENV)/.stamp-dev
	@$(BIN)/python -m benchmarks run --quick $(BENCH_ARGS)

soak: system-packages $(VENV)/.stamp-dev
	@$(BIN)/python -m tests.soak $(SOAK_ARGS)

dist: $(VENV)/.stamp-dev
	@$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist docs/elixir/reference elixir/_build elixir/priv elixir/python elixir/LICENSE elixir/CHANGELOG.md .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian keeps `venv` and `ensurepip` in a package of their own, so a machine with Python may lack them.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "snex-node needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
			"Choose another one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		tests/support/install-system-packages python3-venv
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing snex-node into $(VENV) ..."
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing snex-node and its development tools into $(VENV) ..."
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-package

$(VENV)/.stamp-docs: $(VENV)/.stamp-venv pyproject.toml
	@echo "Installing what builds the site into $(VENV) ..."
	@$(PIP) install --editable '.[docs]'
	@touch $@ $(VENV)/.stamp-package

# Without a network, or on a Python that it has not been built for, there are figures and no charts.
$(VENV)/.stamp-charts: $(VENV)/.stamp-dev
	@$(PIP) install --editable '.[charts]' && touch $@ || echo "matplotlib cannot be installed"

# uv makes the Python environments of Elixir modules.
$(VENV)/.stamp-uv: $(VENV)/.stamp-dev
	@$(PIP) install 'uv>=0.6.8'
	@touch $@

# Tests talk to a real erl, elixir and epmd, and install the client from a clone.
system-packages:
	@for program in erl epmd elixir mix; do \
		command -v $$program >/dev/null || { \
			tests/support/install-system-packages erlang-base erlang-dev elixir; exit; }; \
	done
	@command -v cc >/dev/null || tests/support/install-system-packages gcc libc6-dev
	@command -v git >/dev/null || tests/support/install-system-packages git
	@test -e "$$(erl -noshell -eval 'io:put_chars(code:root_dir()), halt().')/usr/include/erl_nif.h" || \
		tests/support/install-system-packages erlang-dev
