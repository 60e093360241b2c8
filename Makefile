# make setup | demo | test | test-all | lint | table | film | pictures
#
# TEST_WORKERS  processes that tests run in; files are shared out among them
# PYTHON        interpreter for the virtual environment (3.11 or 3.12)
# TORCH_INDEX   PyTorch's package index, for a build that fits your machine, e.g.
#                 make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
TORCH_INDEX ?=
TEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TREE := build/tree
JAVASCRIPT := $(addsuffix /node_modules/.package-lock.json,docs/consumer clients/node)

.PHONY: setup demo table film pictures test test-all lint tree clean

setup: $(INSTALLED) $(JAVASCRIPT)

$(INSTALLED): requirements.lock pyproject.toml
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "the simulators need Python 3.11 or 3.12: pass PYTHON=python3.11 (and move $(VENV) away if it is another's)"; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.lock
	mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . 2> build/install.log \
		|| { cat build/install.log; exit 1; }
	@echo "compiling robosuite's numba functions, once"
	$(BIN)/python -c "from rql_deploy.sim.plants.tasks import Task; env = Task('robosuite:Lift', {}).make_env(); env.reset(seed=0); env.step([0.0] * 7)"
	touch $@

# The JavaScript consumer of a bundle and the JavaScript client, for their tests. A user who lacks npm goes without these tests and is told;
# where all is required it is an error.
%/node_modules/.package-lock.json: %/package-lock.json
	@if command -v npm > /dev/null && (cd $* && npm ci --ignore-scripts --no-audit --no-fund --fetch-retries=5 --fetch-timeout=120000); \
		then touch $@; \
		elif [ -n "$(RQL_REQUIRE_ALL)" ]; then echo "$* needs npm and a registry"; exit 2; \
		else echo "$* could not be installed (npm and a registry are needed): it will not be tested"; fi

demo: $(INSTALLED)
	$(BIN)/rql-deploy demo

# Hours; stopped at any time, it goes on where it was. Rows are finished one after the other (runs/table/results.md).
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
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not slow"

test-all: setup lint
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

lint: setup tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(abspath $(BIN))/mypy --config-file $(abspath pyproject.toml) --cache-dir $(abspath .mypy_cache) -p rql_deploy
	cd $(TREE) && $(abspath $(BIN))/lint-imports --config $(abspath pyproject.toml) --no-cache
	$(BIN)/python -m pytest tests/test_layout.py

# The rooms lie beside rql_deploy/ but are installed inside it; type and import checkers see them where they are installed.
tree:
	rm -rf $(TREE) && mkdir -p $(TREE)/rql_deploy
	cd $(TREE)/rql_deploy && ln -s ../../../rql_deploy/* . && ln -s ../../../train ../../../export ../../../runtime ../../../sim .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/consumer/node_modules clients/node/node_modules *.egg-info
