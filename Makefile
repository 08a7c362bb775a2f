# `make help` lists the targets. TESTBED=… chooses another cluster command with the same verbs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

UV := .tools/bin/uv
BIN := .venv/bin
TESTBED ?= tests/kind/cluster
SECOND := tests/kind/cluster --name ctrmig-2
NAMESPACE ?= container-migration
# What a cluster serves and `helm template`, which asks none, does not know of.
SERVED := --api-versions admissionregistration.k8s.io/v1/MutatingAdmissionPolicy
export UV_PYTHON_DOWNLOADS := never

SYNCED := .venv/.synced

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	@tests/require-python
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv==0.13.9

$(SYNCED): $(UV) uv.lock pyproject.toml operator/pyproject.toml operator/api/pyproject.toml node-agent/pyproject.toml
	$(UV) sync --quiet --frozen --all-packages --python python3
	@touch $@

.PHONY: setup
setup: $(SYNCED) ## install the Python environment from uv.lock

.PHONY: test
test: $(SYNCED) ## everything: lint, types, generated files, unit, contract and end-to-end tests
	tests/run

.PHONY: check
check: lint types generated ## all that needs neither a cluster nor a minute

.PHONY: lint
lint: $(SYNCED) ## ruff, import contracts, gofmt, go vet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@cd node-agent/interposer && test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	cd node-agent/interposer && go vet ./...

.PHONY: types
types: $(SYNCED) ## pyright, strict
	$(BIN)/pyright

.PHONY: crds
crds: $(SYNCED) ## write crds/ from the models
	$(BIN)/python -m migration_api.crds crds

.PHONY: docs
docs: $(SYNCED) ## write docs/conditions.md from the constants
	$(BIN)/python -m migration_api.docs docs/conditions.md

.PHONY: manifests
manifests: crds ## write manifests/install.yaml from the chart
	$(TESTBED) tool helm template container-migration . --namespace $(NAMESPACE) --include-crds --no-hooks $(SERVED) > manifests/install.yaml

.PHONY: generated
generated: $(SYNCED) ## fail when crds/, docs/conditions.md or manifests/ differ from what their sources generate
	@rm -rf build/generated && mkdir -p build/generated
	$(BIN)/python -m migration_api.crds build/generated/crds
	diff -r crds build/generated/crds
	$(BIN)/python -m migration_api.docs build/generated/conditions.md
	diff docs/conditions.md build/generated/conditions.md
	$(TESTBED) tool helm template container-migration . --namespace $(NAMESPACE) --include-crds --no-hooks $(SERVED) > build/generated/install.yaml
	diff manifests/install.yaml build/generated/install.yaml

.PHONY: unit
unit: $(SYNCED) ## unit and contract tests, in Python and Go
	HELM="$$($(TESTBED) tool --path helm)" $(BIN)/pytest -n auto --dist worksteal
	cd node-agent/interposer && go test ./...

FUZZ_SECONDS ?= 20

.PHONY: fuzz
fuzz: $(SYNCED) ## look for input that breaks a parser or leaves its directory: FUZZ_SECONDS for each target, SEED for Python
	cd node-agent/interposer && export TMPDIR=/dev/shm && for target in $$(grep -ho '^func Fuzz[A-Za-z]*' *_test.go | cut -c6-); do \
	  go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZ_SECONDS)s -fuzzminimizetime 1s . || exit 1; done
	$(BIN)/pytest -q tests/unit/agent/test_fuzz.py tests/unit/agent/test_fuzz_archive.py tests/unit/agent/test_fuzz_stream.py

.PHONY: cluster-up
cluster-up: ## bring the kind cluster up (about 20 minutes the first time, about 1 from the cache)
	$(TESTBED) up

.PHONY: cluster-down
cluster-down: ## remove the cluster and everything it put on this machine, but the cache
	$(TESTBED) down
	$(SECOND) down

.PHONY: cluster-status
cluster-status: ## nodes, versions, where all came from, and the work-arounds in force
	$(TESTBED) status

.PHONY: images
images: ## build operator, agent and the tests' workload image, and load them into the nodes
	$(TESTBED) build operator agent workload
	$(TESTBED) load localhost/container-migration/operator:dev localhost/container-migration/agent:dev
	$(TESTBED) load --everywhere localhost/container-migration/workload:dev  # the witness of the chaos tests is out of the way

.PHONY: deploy
deploy: images ## load the images, apply the CRDs, install or upgrade the chart, wait until it is ready
	tests/deploy

.PHONY: e2e
e2e: $(SYNCED) cluster-up deploy e2e-only ## end-to-end tests, from nothing

.PHONY: e2e-only
e2e-only: $(SYNCED) ## all end-to-end tests, also those that `make test` leaves out, on the cluster as it is
	$(TESTBED) exec -- $(BIN)/pytest tests/e2e --timeout 600 $(PYTEST_ARGS)

.PHONY: e2e-lanes
e2e-lanes: $(SYNCED) ## end-to-end tests on two clusters, side by side, a file at a time
	$(TESTBED) tool --path checkpointctl  # or tests of both lanes wait for its build
	$(BIN)/pytest tests/e2e --timeout 600 -n 2 --dist loadfile --durations 30 $(PYTEST_ARGS)

.PHONY: second-cluster
second-cluster: ## bring up and deploy to the cluster of the second lane
	$(SECOND) up
	$(MAKE) --no-print-directory deploy TESTBED="$(SECOND)"

CHAOS = PYTHONPATH=tests $(TESTBED) exec -- $(BIN)/python -m chaos
N ?= 200
JOBS ?= 4

.PHONY: chaos
chaos: $(SYNCED) ## N migrations (200), JOBS at a time (4), to each of which something random happens; SEED=… repeats one
	$(CHAOS) storm --number $(N) --jobs $(JOBS) --seed "$(SEED)"

.PHONY: chaos-matrix
chaos-matrix: $(SYNCED) ## every failpoint and accident, one after another; goes on where it was stopped; writes docs/chaos.md
	$(CHAOS) matrix $(CHAOS_ARGS)

.PHONY: demo
demo: $(SYNCED) cluster-up deploy ## the main job, from nothing: a redis moves to another node while a client writes to it
	PYTHONPATH=tests $(TESTBED) exec -- $(BIN)/python -m demo

RUNC ?= $(firstword $(shell command -v runc) $(wildcard $(HOME)/.cache/container-migration/debs/engine-*/usr/sbin/runc))

.PHONY: bench
bench: $(SYNCED) ## how long a container stands still: podman, runc, lazy runc and us, side by side; writes docs/benchmarks
	PYTHONPATH=tests $(TESTBED) exec -- $(BIN)/python -m bench.freeze $(BENCH_ARGS)

.PHONY: bench-interposer
bench-interposer: $(SYNCED) ## what the interposer adds to a call of runc (RUNC=…: the real one; default: PATH, test bed)
	PYTHONPATH=tests $(BIN)/python -m bench.interposer --runc "$(RUNC)"

.PHONY: bench-idle
bench-idle: $(SYNCED) ## memory and processor time of operator and agents when nothing happens, over a minute
	PYTHONPATH=tests $(TESTBED) exec -- $(BIN)/python -m bench.idle

.PHONY: bench-transfer
bench-transfer: $(SYNCED) ## how fast a checkpoint moves between two nodes, beside sendfile and TLS; writes docs/benchmarks
	PYTHONPATH=tests $(TESTBED) exec -- $(BIN)/python -m bench.transfer $(BENCH_ARGS)

.PHONY: bench-chunks
bench-chunks: $(SYNCED) ## what sealing, sending and opening a chunk costs, step by step, on this machine
	PYTHONPATH=tests $(BIN)/python -m bench.chunks

.PHONY: clean
clean: ## remove the Python environments and build results of this checkout
	rm -rf .venv .tools build
