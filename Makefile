# Needs git, make and Python 3.11-3.13 with venv; everything else is installed in .venv.
# PYTHON=python3.12 make … selects the interpreter.
PYTHON ?= python3
UV := 0.13.8
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without bytecode, importing Keras takes twice as long
unexport PYTHONOPTIMIZE  # level 2 removes docstrings, which Altair needs
unexport PIP_TARGET PIP_PREFIX UV_PYTHON UV_FROZEN  # packages go to .venv, in the versions of uv.lock
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
READY := .venv/ready
# --inexact keeps what other targets have installed; --system-certs is needed behind some proxies
SYNC := .venv/bin/uv sync --locked --inexact --quiet --system-certs
# the dependency group that GPU=1 installs, as in GROUPS of pipeline/runtime/gpu.py
CUDA := $(if $(filter 1,$(GPU)),$(if $(shell grep -E '^backend: *jax' params.yaml),jax-cuda,cuda))
PARALLEL := -n logical --maxprocesses 4 --dist loadgroup  # each worker loads TensorFlow: about 1 GB
STUDIES := $(filter-out dvc,$(patsubst studies/%.yaml,%,$(wildcard studies/*.yaml)))

.DEFAULT_GOAL := help
.PHONY: help gpu repro folder photos doctor study model search test test-slow test-long check format schema bench report demo docs clean-checkpoints

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
		while IFS='|' read -r target text; do printf '  make %-17s %s\n' "$$target" "$$text"; done

$(READY): uv.lock pyproject.toml
	@echo "installing uv.lock in .venv (the first time: 0.9 GB to download, 2.9 GB on disk)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`, but must be Python 3.11 to 3.13. Try PYTHON=python3.12 make"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --no-user --quiet --disable-pip-version-check uv==$(UV)
	@$(SYNC)
	@touch $@

$(READY)-%: $(READY)  # with a dependency group of pyproject.toml
	@echo "installing the dependency group $* of pyproject.toml in .venv"
	@$(SYNC) --group $*
	@touch $@

gpu:  # before its libraries are downloaded, 3 GB
	@nvidia-smi -L || { echo "error: GPU=1 needs an NVIDIA GPU with its driver. nvidia-smi finds none" >&2; exit 1; }

repro: $(if $(CUDA),gpu $(READY)-$(CUDA)) $(READY)  ## run changed stages; JOBS=1: one by one; GPU=1: on GPUs
	$(strip python -m pipeline repro $(JOBS))

folder:  # before anything is installed
	@$(if $(FOLDER),,echo "error: FOLDER must name a folder, as in make photos FOLDER=~/pictures" >&2; exit 1)

photos: folder $(READY)-pretrained  ## set up and run for FOLDER=~/pictures; YES=1: do not ask
	@python -m pipeline photos "$(FOLDER)" $(if $(YES),--yes)
	@$(MAKE) --no-print-directory repro

doctor:  ## report what keeps the pipeline from running
	@test -f $(READY) || { echo "error: no .venv yet. Run make repro, which creates it" >&2; exit 1; }
	@python -m pipeline doctor  # installs nothing: it reports a .venv that differs from uv.lock

study: $(READY)  ## run one study of studies/, such as NAME=padding
	@$(if $(filter $(STUDIES),$(NAME)),,echo "error: NAME must be one of $(STUDIES). Got '$(NAME)'" >&2; exit 1)
	@python -m pipeline params check
	dvc repro studies/dvc.yaml:study@$(NAME)
	@# printed here too, for a study that was up to date and did not run
	@python -c 'import json; print(json.load(open("studies/$(NAME).json"))["sentence"])'
	@echo "studies/$(NAME).json, studies/$(NAME).png"

model:  # before anything is installed
	@$(if $(MODEL),,echo "error: MODEL must name a model, as in make search MODEL=batchnorm TRIALS=20" >&2; exit 1)

SEARCH = python -m pipeline search $(MODEL) $(if $(TRIALS),--trials $(TRIALS)) $(if $(JOBS),--jobs $(JOBS))
search: model $(READY)-search  ## try settings of a model: make search MODEL=batchnorm
	@$(SEARCH) --check  # before other stages run
	@# --glob: a model that is not in `compare` has no stage `features`
	dvc repro --quiet --glob split 'features@$(MODEL)'
	@$(SEARCH)

report:  ## open the last report in the browser and print its path
	@test -f plots/report.html || { echo "error: no plots/report.html yet. Run make repro" >&2; exit 1; }
	@echo "$(CURDIR)/plots/report.html"
	@python3 -c 'import pathlib, webbrowser; webbrowser.open_new_tab(pathlib.Path("plots/report.html").resolve().as_uri())'

demo: $(READY)-demo  ## classify images in the browser
	@python -m pipeline demo

test: $(READY)-dev  ## run the quick tests
	pytest $(PARALLEL)

test-slow: $(READY)-dev  ## run the slow tests: DVC, a browser, JAX, SSH
	pytest $(PARALLEL) -m "slow and not long"

test-long: $(READY)-dev  ## run the longest tests, before a release
	pytest $(PARALLEL) -m long

check: $(READY)-dev  ## lint; check format, types and imports, as CI does
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo

format: $(READY)-dev  ## format the code and apply ruff's fixes
	ruff check --fix
	ruff format

schema: $(READY)  ## write params.schema.json from config/schema.py
	python -m pipeline params schema > params.schema.json

bench: $(READY)  ## compare speed with Keras and PyTorch; QUICK=1: short
	python -m benchmarks $(if $(QUICK),--quick)

docs: $(READY)-docs  ## build the documentation in site/
	@NO_MKDOCS_2_WARNING=1 mkdocs build
	@echo "to read it: python3 -m http.server --bind 127.0.0.1 --directory site"

clean-checkpoints:  ## delete the checkpoints of interrupted trainings
	rm -rf .checkpoints
