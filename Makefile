# Every target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON      ?= python3
VENV        ?= .venv
CONFIG      ?= configs/local.yaml
STATE_DIR   ?= .serve-app
PORT        ?= 8000
MLFLOW_PORT ?= 5000

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH     := $(shell grep '^torch==' constraints.txt)
PIP       := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: manifests plain registered temporal help up down test lint format bench bench-reload bench-forecasts bench-registry bench-many-models bench-splits bench-shadow simulate report-example venv chaos rehearsal rehearsal-figures e2e-k3s

help: ## Print this list
	@echo "Targets:"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "Variables: CONFIG=$(CONFIG) PORT=$(PORT) MLFLOW_PORT=$(MLFLOW_PORT) STATE_DIR=$(STATE_DIR) PYTHON=$(PYTHON) VENV=$(VENV)"

ifeq ($(notdir $(CONFIG)),tft.yaml)
MODELS := temporal
else
MODELS := plain registered
endif

plain: venv
	@echo "==> first model ($(STATE_DIR)/models/forecaster)"
	@$(BIN)/python -m training.train_forecaster --if-missing --out $(STATE_DIR)/models/forecaster

registered: venv
	@echo "==> model registry, with a first model (iris-random-forest)"
	@$(BIN)/serve-app registry up --state-dir $(STATE_DIR) --port $(MLFLOW_PORT)
	@$(BIN)/python -m training.train_iris --if-missing --tracking-uri "$$($(BIN)/serve-app registry uri --state-dir $(STATE_DIR))"

temporal: venv
	@echo "==> first model of a fleet ($(STATE_DIR)/models/tft)"
	@$(BIN)/python -m training.train_tft --if-missing --out $(STATE_DIR)/models/tft

up: venv $(MODELS) ## Train first models if there are none, start MLflow and the server, wait until it is ready
	@echo "==> server"
	@$(BIN)/serve-app up --config $(CONFIG) --state-dir $(STATE_DIR) --port $(PORT)

down: venv ## Stop all that `make up` started, and nothing else
	@$(BIN)/serve-app down --state-dir $(STATE_DIR)
	@$(BIN)/serve-app registry down --state-dir $(STATE_DIR)

test: venv ## Run every test
	@echo "==> tests"
	@$(BIN)/python -m pytest

chaos: venv ## Kill, rescale and starve a real server under traffic (minutes)
	@echo "==> chaos"
	@$(BIN)/python -m pytest -m chaos

# Without root, Pods are isolated in a namespace of users, where the system allows one.
ROOTLESS = $(shell [ "$$(id -u)" = 0 ] || ! unshare --map-root-user true 2>/dev/null || echo unshare --map-root-user)

rehearsal: venv ## Run what kuberay/ says as local processes, Pod by Pod (minutes; root, or namespaces of users)
	@echo "==> rehearsal"
	@$(ROOTLESS) $(BIN)/python -m pytest -m rehearsal tests/rehearsal

rehearsal-figures: venv ## Measure rehearsed Pods; writes docs/promotions.md and docs/kuberay-memory.md
	@echo "==> figures of the rehearsal"
	@$(ROOTLESS) $(BIN)/python -m tests.rehearsal.figures

e2e-k3s: venv ## The same scenarios on a true cluster: E2E_K3S_CONTEXT=<context of your kubeconfig>
	@echo "==> true cluster"
	@$(BIN)/python -m pytest -m e2e_k3s tests/e2e_k3s

lint: venv ## Check style, types and import layers
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import-linter"
	@$(BIN)/lint-imports
	@echo "==> shellcheck"
	@$(BIN)/shellcheck --external-sources --shell=sh kuberay/sidecar/*.sh kuberay/images/*.sh

manifests: venv ## Write the Serve configs of kuberay/overlays from configs/
	@for overlay in edge cluster cluster-gpu; do \
	    $(BIN)/serve-app kuberay render configs/$$overlay.yaml --out kuberay/overlays/$$overlay/serve-config.yaml || exit 1; \
	done

format: venv ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: venv ## Measure this server against its peers; writes docs/benchmarks.md
	@echo "==> benchmarks"
	@$(BIN)/python -m tests.benchmarks.run

bench-reload: venv ## Measure what clients notice of changes and kills; writes docs/reload.md
	@echo "==> reload benchmark"
	@$(BIN)/python -m tests.benchmarks.reload

bench-forecasts: venv ## Measure a fleet's windows and forecasts; writes docs/forecasts.md
	@echo "==> forecasts benchmark"
	@$(BIN)/python -m tests.benchmarks.forecasts

bench-registry: venv ## Measure a family that follows MLflow; writes the figures of docs/mlflow.md
	@echo "==> registry benchmark"
	@$(BIN)/python -m tests.benchmarks.registry

bench-many-models: venv ## Measure one family that serves many registered models; writes docs/many-models.md
	@echo "==> many models benchmark"
	@$(BIN)/python -m tests.benchmarks.many_models

bench-splits: venv ## Measure what a split of traffic costs and how well it is kept; writes docs/splits.md
	@echo "==> splits benchmark"
	@$(BIN)/python -m tests.benchmarks.splits

bench-shadow: venv ## Measure what live requests notice of a shadow; writes docs/shadow.md
	@echo "==> shadow benchmark"
	@$(BIN)/python -m tests.benchmarks.shadow

simulate: venv ## Simulate rollouts, how often their verdicts err; writes docs/statistics.md
	@echo "==> simulated rollouts (some minutes)"
	@$(BIN)/python -m tests.simulations.rollouts

report-example: venv ## Simulate one experiment, and write its report; writes docs/ab-report.md
	@echo "==> example of a report"
	@$(BIN)/python -m tests.simulations.ab_report

venv: $(INSTALLED)

# torch first and alone, so that whatever build of it the machine's package index offers (CPU or CUDA) is the one kept.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; set PYTHON=")'
	@echo "==> environment in $(VENV) (the first time takes some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$(TORCH)"
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $(INSTALLED)
