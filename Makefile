# `make` lists the targets. Each one first sets up what it needs; nothing else has to be typed.
SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.ready
PYTHON ?=
ARGS ?=
SUITE ?=
EXPORT := $(BIN)/uv export --frozen --no-emit-project --all-groups --quiet

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast check lock kafka peers flink bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

$(READY): pyproject.toml uv.lock requirements.lock
	@PYTHON="$(PYTHON)" bash scripts/setup

setup: $(READY) ## build .venv from the lock files (PYTHON=... names the interpreter)

run: $(READY) ## from nothing to a serving system (ARGS="--once" ends by itself)
	$(BIN)/raypipe up $(ARGS)

# CI=true adds what only a clean tree can show; locally `make check` is its own step.
test: $(READY) $(if $(filter true,$(CI)),check) ## all tests (ARGS="-k word" selects)
	@bash scripts/test $(ARGS)

test-fast: $(READY) ## tests without Ray and without the slow ones
	$(BIN)/python -m pytest -m "not ray and not slow" $(ARGS)

check: $(READY) ## lint, format, types, layers, lock files, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/uv lock --check
	@$(EXPORT) | diff -I '^#    uv export' requirements.lock - \
	  || { echo "requirements.lock is not what uv.lock says: make lock"; exit 1; }
	$(BIN)/python -m pytest -q tests/architecture

lock: $(READY) ## write the lock files again after a change of pyproject.toml
	$(BIN)/uv lock
	$(EXPORT) -o requirements.lock
	echo 'boto3>=1.40' | $(BIN)/uv pip compile --universal --python-version 3.11 \
	  --generate-hashes --no-header --quiet -o deploy/aws.lock -
	echo 'pyspark>=4.0,<4.1' | $(BIN)/uv pip compile --universal --python-version 3.11 \
	  --generate-hashes --no-header --quiet -o benchmarks/peers/peers.lock -
	echo 'apache-flink>=2.3,<2.4' | $(BIN)/uv pip compile --universal --python-version 3.11 \
	  --generate-hashes --no-header --quiet -o benchmarks/peers/flink.lock -

kafka: ## a real Kafka broker's jars into .kafka, for the tests (needs Java and Maven)
	@bash scripts/kafka/assemble

peers: $(READY) ## what only benchmarks compare with: PySpark (needs Java)
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r benchmarks/peers/peers.lock

# In an environment of its own: its pins are older than ours.
flink: $(READY) ## Flink into .flink, for the benchmark stream_peers (needs Java)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .flink
	$(BIN)/uv pip install --python .flink/bin/python --require-hashes -r benchmarks/peers/flink.lock

bench: $(READY) ## a benchmark: SUITE=windows ARGS=--quick (no SUITE lists them)
	$(BIN)/python -m benchmarks $(SUITE) $(ARGS)

clean: ## remove .venv and caches; data in .raypipe stays
	rm -rf .venv .kafka .flink .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find raypipe features training serving benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
