.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The container's Python where there is one.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/installed
TORCH ?= index
# Once here, instead of in each process that imports torch or scikit-learn first.
export UV_COMPILE_BYTECODE := 1
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
LABS := $(sort $(wildcard notebooks/labs/*.ipynb))
# Most tests wait for processes; what a file's tests share is made once.
SIDE_BY_SIDE := --numprocesses=auto --maxprocesses=4 --dist=loadfile
NBVAL := $(BIN)/pytest -q -p no:cacheprovider --nbval --nbval-current-env --nbval-cell-timeout=300

# Asked before anything is installed.
CHECK_PYTHON := import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12), (3, 13)) or sys.exit( \
	f"Python {v[0]}.{v[1]} is not supported; use 3.11 as the container does, 3.12 or 3.13: make setup PYTHON=python3.11")

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# In place of the network: a folder of wheels, as `make wheelhouse` fills one.
OFFLINE := $(if $(WHEELHOUSE),--no-index --find-links $(abspath $(WHEELHOUSE)))
# What the hashes say, and no setup.py is run. Without a hash: torch from PyTorch's own index.
INSTALL := $(BIN)/uv pip install --python $(BIN)/python $(OFFLINE)
LOCKED := $(INSTALL) --require-hashes --only-binary :all: --no-deps -r
# The lines of requirements.hashes.txt that belong to the distributions for which this awk condition is true.
lines_of = awk '/^[^ ]/ { is_wanted = $(1) } is_wanted' requirements.hashes.txt

$(STAMP): requirements.hashes.txt pyproject.toml
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(OFFLINE) --require-hashes --only-binary :all: \
		-r <($(call lines_of,/^uv==/))
ifeq ($(TORCH),cpu)
	@$(INSTALL) --index https://download.pytorch.org/whl/cpu torch==2.7.1+cpu
	@$(call lines_of,!/^(torch|triton|nvidia-[a-z0-9-]+)==/) | $(LOCKED) -
else
	@$(LOCKED) requirements.hashes.txt
endif
	@$(INSTALL) --quiet --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(STAMP) ## create .venv and install what is locked (TORCH=cpu: a smaller torch; WHEELHOUSE=folder: without a network)

DOWNLOAD := $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest build/wheelhouse

.PHONY: wheelhouse
wheelhouse: $(STAMP) ## fetch what setup installs, for this system and Python, into build/wheelhouse
ifeq ($(TORCH),cpu)
	@$(DOWNLOAD) --index-url https://download.pytorch.org/whl/cpu torch==2.7.1+cpu
	@$(DOWNLOAD) --require-hashes -r <($(call lines_of,!/^(torch|triton|nvidia-[a-z0-9-]+)==/))
else
	@$(DOWNLOAD) --require-hashes -r requirements.hashes.txt
endif
	@$(BIN)/python -c 'import platform; print("for Python", platform.python_version(), "on", platform.system(), platform.machine())'
	@du -sh build/wheelhouse

.PHONY: run
run: $(STAMP) ## run the tutorial: six notebooks, a table of answers (MME_BACKEND=aws asks first; MME_YES=1 doesn't)
	@status=0; $(BIN)/python tools/notebooks.py run || status=$$?; $(BIN)/mme down; exit $$status

.PHONY: up
up: $(STAMP) ## start the local platform
	@$(BIN)/mme up

.PHONY: down
down: $(STAMP) ## stop the local platform and everything it started
	@$(BIN)/mme down

.PHONY: lint
lint: $(STAMP) ## check style, types, import rules, templates and notebooks
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/cfn-lint infra/*.yaml
	@$(BIN)/python tools/notebooks.py lint

.PHONY: format
format: $(STAMP) ## lay out the Python files and notebooks
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: test
test: lint ## lint, types, unit and contract tests, then every notebook with its outputs compared
	@$(BIN)/pytest -q $(SIDE_BY_SIDE)
	@$(MAKE) --no-print-directory notebooks

.PHONY: notebooks
notebooks: $(STAMP) ## run every notebook, and the labs shortened, under nbval and compare their outputs
	@status=0; $(NBVAL) $(NOTEBOOKS) || status=$$?; $(BIN)/mme down; exit $$status
	@MME_LAB_SCALE=0.1 $(NBVAL) $(SIDE_BY_SIDE) $(LABS)

.PHONY: labs
labs: $(STAMP) ## run the labs at full length under nbval, in some minutes each
	@$(NBVAL) $(LABS)

.PHONY: test-browser
test-browser: $(STAMP) ## look at the live page in Chromium (`make test` does too where one is on PATH)
	@$(BIN)/pytest -q tests/browser

.PHONY: screenshots
screenshots: $(STAMP) ## take the pictures of the live page anew, in Chromium
	@$(BIN)/python tests/browser/screenshots.py

.PHONY: soak
soak: $(STAMP) ## load the server and the platform for minutes and print the figures
	@$(BIN)/pytest -q -s -m soak tests/soak tests/platform/test_soak.py tests/aws tests/chaos

# The peer with a process per model where there is a Java to run it.
BENCH_PEERS := ours,fastapi,$(if $(shell command -v java),mms,mlserver)
BENCH := $(BIN)/python -m benchmarks

.PHONY: bench
bench: $(STAMP) ## measure the server beside two others, in some 5 minutes
	@$(BENCH) run --peers $(BENCH_PEERS) --rounds 1 --seconds 1 --loads 3 --further 5 --unloads 10 --models 100

.PHONY: bench-all
bench-all: $(STAMP) ## measure everything beside every other server, three rounds, in some 30 minutes
	@$(BENCH) run

.PHONY: bench-table
bench-table: $(STAMP) ## write the tables and plots of README and docs/benchmarks.md from the committed results
	@$(BENCH) table

.PHONY: bench-guard
bench-guard: $(STAMP) ## measure a few ratios to FastAPI; fail if one is worse than committed
	@$(BENCH) guard

.PHONY: render
render: $(STAMP) ## run every notebook and keep its outputs in it
	@status=0; $(BIN)/python tools/notebooks.py render || status=$$?; $(BIN)/mme down; exit $$status

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header

.PHONY: lock
lock: $(STAMP) ## write requirements.txt anew from requirements.in, its hashes and licences, and install it
	@$(LOCK) requirements.in -o requirements.txt
	@$(LOCK) --no-deps --no-annotate --generate-hashes requirements.txt -o requirements.hashes.txt
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python tools/licences.py

.PHONY: audit
audit: $(STAMP) ## ask PyPI for known weaknesses of what is locked; fails where its feed can't be reached
	@$(BIN)/uv tool run pip-audit --strict --requirement requirements.hashes.txt --require-hashes --disable-pip --progress-spinner off

.PHONY: clean
clean: ## remove what runs leave: build/ but for its wheels, packages, the platform's home
	@if test -x $(BIN)/mme; then for home in .mme $(wildcard .mme/labs/*); do MME_HOME=$$home $(BIN)/mme down; done; fi
	@if test -d build; then find build -mindepth 1 -maxdepth 1 ! -name wheelhouse -exec rm -rf {} +; fi
	@rm -rf .mme .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find model_packages -mindepth 1 ! -name README.md -delete

.PHONY: reset
reset: clean ## as after setup, for the next attendees (NOTEBOOKS_TOO=yes: the notebooks as committed, edits are lost)
ifeq ($(NOTEBOOKS_TOO),yes)
	@git restore notebooks
endif

.PHONY: distclean
distclean: clean ## remove the environment and the wheels as well
	@rm -rf .venv build
