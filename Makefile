# Needs make and Python 3.11 or newer; the rest goes into .venv. `make help` lists the targets.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
DEPLOY := .venv-deploy
POLICY := .venv-policy
DOCS := .venv-docs
LIVE := tests/live $(patsubst %,tests/ops/test_%.py,bench demo torture)

.PHONY: help env demo run quick test test-live test-outages test-rabbitmq test-servers test-upgrade test-clients explain torture bench check docs check-deploy sbom audit lanes reference hooks lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(VENV)/.ready ## create the Python environment

$(VENV)/.ready: requirements.txt requirements-dev.txt pyproject.toml scripts/environment
	@sh scripts/environment $(VENV)
	@touch $@

demo: env ## run the whole service on embedded servers and send it real work
	@$(BIN)/els demo

run: env ## run the whole service until Ctrl-C
	@$(BIN)/els run

quick: env ## run the tests of core and tasks, without the slow ones (90 seconds)
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" tests/core tests/tasks $(ARGS)

test: env ## run the tests, on embedded servers (seven minutes)
	@echo "== tests (seven minutes on two cores; real servers)"
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not outage" $(addprefix --ignore ,$(LIVE)) --ignore tests/rabbitmq --ignore tests/explain --ignore tests/servers --ignore tests/upgrade --ignore tests/clients $(ARGS)

test-live: env ## run the tests with real workers, which some of them kill (eight minutes)
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not outage" $(LIVE) $(ARGS)

test-outages: env ## run the tests of servers that refuse, hang or fall silent (ten minutes)
	@$(BIN)/python -m pytest -n auto --maxprocesses 3 -m outage tests/live tests/durable_redis $(ARGS)

test-rabbitmq: env ## run the tests of RabbitMQ and tests/live on a real one (Debian's; 20 minutes)
	@sh scripts/rabbitmq install || echo "== its tests are skipped"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --broker rabbitmq -m "not outage" tests/rabbitmq tests/live $(ARGS)

test-servers: env ## run the tests on Debian's servers: pooled, replicated, encrypted, watched
	@sh scripts/debian postgresql redis-server redis-sentinel pgbouncer prometheus \
		|| echo "== the tests of what is missing are skipped"
	@$(BIN)/python -m pytest -n auto --dist loadfile tests/servers $(ARGS)

test-upgrade: env ## run the last release beside this code, under load (five minutes)
	@$(BIN)/python -m pytest -n 0 tests/upgrade $(ARGS)

test-clients: env ## test the kits for Python and Node beside workers (eight minutes)
	@sh scripts/rabbitmq install || echo "== the tests on RabbitMQ are skipped"
	@sh scripts/clients-node || [ $$? = 3 ]
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/clients $(ARGS)

explain: env ## make each cause of a batch that is not ready, and ask `els explain` (some minutes)
	@$(BIN)/python -m pytest -n auto --dist worksteal tests/explain $(ARGS)

torture: env ## kill a worker 25 times at every crash point, then ten minutes of random faults
	@echo "== every crash point 25 times (about an hour)"
	@$(BIN)/python -m pytest tests/live -m crash --runs 25 $(ARGS)
	@echo "== ten minutes of random faults"
	@$(BIN)/els torture --minutes 10

bench: $(VENV)/.peers ## measure throughput, latency, growth and peers (about half an hour)
	@$(BIN)/els bench --peers --growth --out docs/performance $(ARGS)
	@$(BIN)/python -m bench.publish docs/performance docs/performance.md

$(VENV)/.peers: requirements-peers.txt $(VENV)/.ready
	@if command -v uv >/dev/null 2>&1; \
	then uv pip install -q --python $(BIN)/python --require-hashes -r requirements-peers.txt; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-peers.txt; fi
	@touch $@

check: env ## run linters and type checks
	@echo "== ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

reference: env ## write docs/reference, the alerts for Kubernetes, and what the Python kit shares
	@$(BIN)/python -m ops.reference docs/reference
	@$(BIN)/python -m ops.reference.python_kit
	@sh scripts/alerts

docs: $(DOCS)/.ready ## build the pages into a site, site/docs/index.html; a warning is an error
	@$(DOCS)/bin/sphinx-build -q -W --keep-going -b html -c docs -d $(DOCS)/pages . site
	@echo "site/docs/index.html"

$(DOCS)/.ready: requirements-docs.txt
	@echo "== tools in $(DOCS) (once)"
	@python3 -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@

check-deploy: $(DEPLOY)/.ready $(POLICY)/.ready ## check Dockerfile, compose file and Kubernetes objects
	@sh scripts/check-deploy $(DEPLOY) $(POLICY)

sbom: $(DEPLOY)/.ready ## write sbom.json: what the image holds, as CycloneDX
	@$(DEPLOY)/bin/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml --mc-type application \
		--sv 1.6 --output-reproducible --output-file sbom.json
	@echo "sbom.json"

audit: env ## look every locked package up in an advisory database (status 3: it did not answer)
	@$(BIN)/python scripts/audit

$(DEPLOY)/.ready: requirements-deploy.txt
	@echo "== tools in $(DEPLOY) (once)"
	@python3 -m venv --clear $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-deploy.txt
	@touch $@

$(POLICY)/.ready: requirements-policy.txt
	@echo "== tools in $(POLICY) (once)"
	@python3 -m venv --clear $(POLICY)
	@$(POLICY)/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-policy.txt
	@touch $@

lanes: env ## run lanes on each kind of server; write the matrix of docs/operations.md
	@sh scripts/rabbitmq install || echo "== its lanes are skipped"
	@sh scripts/debian postgresql redis-server redis-sentinel pgbouncer || echo "== what is missing is skipped"
	@$(BIN)/python -m tests.lanes $(ARGS)

hooks: ## let git run the checks before each commit
	@if command -v pre-commit >/dev/null; then pre-commit install; \
	else git config core.hooksPath scripts/hooks; fi

lock: ## resolve and pin the requirements files again (needs uv)
	uv pip compile --universal --generate-hashes --python-version 3.11 -q pyproject.toml --extra tracing -o requirements.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 -q pyproject.toml --extra tracing --group dev -o requirements-dev.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 -q pyproject.toml --extra tracing --group peers -c requirements.txt -o requirements-peers.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 -q --group deploy -c requirements-dev.txt -o requirements-deploy.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 -q --group policy -o requirements-policy.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 -q --group docs -c requirements-dev.txt -o requirements-docs.txt

clean: ## remove the environment and, if you say yes, the data of the embedded servers
	rm -rf $(VENV) $(DEPLOY) $(POLICY) $(DOCS) site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@if [ -d .els ]; then \
		printf 'Delete the database in .els too? [y/N] '; read -r answer || echo; \
		case "$$answer" in [yY]*) rm -rf .els;; *) echo 'Kept .els.';; esac; \
	fi
