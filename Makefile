# make setup | demo | test | test-all | lint | docs | wheel | mutants | table | film | pictures
#
# COVERAGE      1: tests also say which lines they ran, and fail below COVERAGE_FLOOR per cent
# TEST_WORKERS  processes that tests run in; files are shared out among them
# PYTHON        interpreter for the virtual environment (3.11 or 3.12); where there is none, uv brings one
# UV            uv, which installs when it is there; UV= leaves it to pip
# TORCH_INDEX   PyTorch's package index, for a build that fits your machine, e.g.
#                 make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
UV ?= $(shell command -v uv)
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || test -n "$(UV)" || command -v python3)
TORCH_INDEX ?=
TEST_WORKERS ?= 2
COVERAGE ?=
COVERAGE_FLOOR ?= 87
COVERED = $(if $(COVERAGE),--cov --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE_FLOOR))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TREE := build/tree
JAVASCRIPT := $(addsuffix /node_modules/.package-lock.json,docs/consumer clients/node)

.PHONY: setup demo table film pictures test test-all lint types docs wheel mutants tree clean

setup: $(INSTALLED) $(JAVASCRIPT)

$(INSTALLED): requirements.lock requirements-no-deps.lock pyproject.toml
	@PYTHON="$(PYTHON)" UV="$(UV)" TORCH_INDEX="$(TORCH_INDEX)" tools/setup
	@touch $@

# The JavaScript consumer of a bundle and the JavaScript client, for their tests. A user who lacks npm goes
# without these tests and is told; where all is required it is an error.
%/node_modules/.package-lock.json: %/package-lock.json
	@if command -v npm > /dev/null && (cd $* && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=5 --fetch-timeout=120000); \
		then touch $@; \
		elif [ -n "$(RQL_REQUIRE_ALL)" ]; then echo "$* needs npm and a registry"; exit 2; \
		else echo "$* could not be installed (npm and a registry are needed): it will not be tested"; fi

demo: $(INSTALLED)
	$(BIN)/rql-deploy demo

# Hours; stopped at any time, it goes on where it was. Rows are finished one after the other
# (runs/table/results.md).
table: $(INSTALLED)
	$(BIN)/rql-deploy sweep benchmarks/table.toml --output runs/table

# The film of the README: a minute or two of an idle machine, for its step times are measured.
film: $(INSTALLED)
	$(BIN)/python docs/pictures/film.py

# All other pictures of the docs, and the hex dump in docs/protocol.md.
pictures: $(INSTALLED)
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python docs/pictures/timelines.py
	$(BIN)/python docs/pictures/hexdump.py
	$(BIN)/python docs/pictures/reversal.py

test: setup lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(COVERED) -m "not slow"

test-all: setup lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(COVERED)

lint: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml) --no-cache
	$(BIN)/python -m pytest tests/test_layout.py

types: tree
	cd $(TREE) && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) \
		--cache-dir $(abspath .mypy_cache) -p rql_deploy

# The rooms lie beside rql_deploy/ but are installed inside it; type and import checkers see them where they
# are installed.
tree:
	rm -rf $(TREE) && mkdir -p $(TREE)/rql_deploy
	cd $(TREE)/rql_deploy && ln -s ../../../rql_deploy/* . && ln -s ../../../train ../../../export ../../../runtime ../../../sim .

# The reference from docstrings, in build/docs; names without a docstring and links that lead nowhere are
# errors.
docs: setup
	tools/lay-out build/laid-out
	PYTHONPATH=build/laid-out $(BIN)/python tools/build_docs.py

# Installs the wheel in bare environments of the Pythons that are here, and uses it.
wheel: setup
	tools/try-wheel

# For a night: which changes of the safety filter, limits and quota does no test notice?
mutants: setup
	tools/mutants

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/consumer/node_modules clients/node/node_modules *.egg-info
