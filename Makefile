# Needs git, make and Python 3.11-3.13 with venv; everything else is set up in .venv.
# PYTHON=python3.12 make … chooses the interpreter.
PYTHON ?= python3
UV := 0.13.8
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without bytecode Keras takes twice as long to import
unexport PYTHONOPTIMIZE  # 2 would remove docstrings, which Altair needs
unexport PIP_TARGET PIP_PREFIX UV_PYTHON UV_FROZEN  # all is installed in .venv, as uv.lock says
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
READY := .venv/ready
# inexact: what was installed for another target stays; certificates as pip's: works behind a proxy
SYNC := .venv/bin/uv sync --locked --inexact --quiet --system-certs
JOBS ?= 1
PARALLEL := -n logical --maxprocesses 4 --dist loadgroup  # a worker holds TensorFlow: about 1 GB
STUDIES := $(filter-out dvc,$(patsubst studies/%.yaml,%,$(wildcard studies/*.yaml)))

.DEFAULT_GOAL := help
.PHONY: help repro doctor study test test-slow test-long check format schema bench report demo docs clean-checkpoints

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r target text; do printf '  make %-17s %s\n' "$$target" "$$text"; done

$(READY): uv.lock pyproject.toml
	@echo "setting up .venv from uv.lock (the first time: 0.9 GB to download, 2.9 GB on disk)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`, expected Python 3.11 to 3.13. Try PYTHON=python3.12 make"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --no-user --quiet --disable-pip-version-check uv==$(UV)
	@$(SYNC)
	@touch $@

$(READY)-%: $(READY)  # a group of pyproject.toml as well
	@echo "adding the group $* of pyproject.toml to .venv"
	@$(SYNC) --group $*
	@touch $@

repro: $(READY)  ## run the pipeline: only what changed; JOBS=2 trains two models at once
	@python -m pipeline params check  # at once, and not only when a stage runs
	@python -m pipeline doctor --repair
	$(if $(filter 1,$(JOBS)),dvc repro,python -m pipeline parallel $(JOBS))
	@python -m pipeline summary

doctor:  ## say what is to fix, and how: DVC's files, outputs, versions, disk, params.yaml, GPU
	@test -f $(READY) || { echo "error: no .venv yet. Run make repro, which sets it up" >&2; exit 1; }
	@python -m pipeline doctor  # uv.lock may be newer than .venv: it says so, and changes nothing

study: $(READY)  ## run one study of studies/, as in make study NAME=padding
	@$(if $(filter $(STUDIES),$(NAME)),,echo "error: NAME must be one of $(STUDIES). Got '$(NAME)'" >&2; exit 1)
	@python -m pipeline params check
	dvc repro studies/dvc.yaml:study@$(NAME)
	@# said here too, for a study that was up to date and did not run
	@python -c 'import json; print(json.load(open("studies/$(NAME).json"))["sentence"])'
	@echo "studies/$(NAME).json, studies/$(NAME).png"

report:  ## open the report of the last run in the browser, and print its path
	@test -f plots/report.html || { echo "error: no plots/report.html yet. Run make repro" >&2; exit 1; }
	@echo "$(CURDIR)/plots/report.html"
	@python3 -c 'import pathlib, webbrowser; webbrowser.open_new_tab(pathlib.Path("plots/report.html").resolve().as_uri())'

demo: $(READY)-demo  ## a page on this machine: drop an image, see its classes and where a model looks
	@python -m pipeline demo

test: $(READY)-dev  ## run the quick tests
	pytest $(PARALLEL)

test-slow: $(READY)-dev  ## run the slow tests: with DVC, a browser, JAX, SSH
	pytest $(PARALLEL) -m "slow and not long"

test-long: $(READY)-dev  ## run what takes longest, before a release: kills in every stage, every export
	pytest $(PARALLEL) -m long

check: $(READY)-dev  ## lint, format and types, as the hooks and CI do
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo

format: $(READY)-dev  ## format the code and fix what ruff can
	ruff check --fix
	ruff format

schema: $(READY)  ## write params.schema.json from the classes in pipeline/config/schema.py
	python -m pipeline params schema > params.schema.json

bench: $(READY)  ## measure speed against plain Keras and PyTorch; QUICK=1: less of it
	python -m benchmarks $(if $(QUICK),--quick)

docs: $(READY)-docs  ## build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 mkdocs build
	@echo "to read it: python3 -m http.server --bind 127.0.0.1 --directory site"

clean-checkpoints:  ## give up trainings that were interrupted: remove what they would go on from
	rm -rf .checkpoints
