# facerecon: `make` lists what there is. Every target sets up what it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
IMG    ?= samples/astronaut.jpg
HEAD   ?=
OUT    ?= outputs/reconstruct
ARGS   ?=
# a process a core, each with one thread; each may take 2 GB
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

# each file is compiled once, not in every process that tests start; freed memory is kept (glibc), a tenth of the time
unexport PYTHONDONTWRITEBYTECODE
test test-all: export MALLOC_MMAP_THRESHOLD_ = 33554432
test test-all: export MALLOC_TRIM_THRESHOLD_ = 1073741824

.PHONY: help setup assets reconstruct evaluate doctor test test-all gltf-validator check format docs benchmark clean

help: ## this text
	@echo "facerecon: one photo in, a textured 3D head out. Each command sets up what it needs."
	@echo
	@echo "  make reconstruct                the sample photo -> a head; the last line is the page to open"
	@echo "  make reconstruct IMG=face.jpg   the same of a photo of yours, or of a folder of photos"
	@echo
	@echo "The first command sets up, once and for some minutes: Python packages in $(VENV) (about 6 GB where torch is"
	@echo "built for CUDA) and models (257 MB to download, about 330 MB kept in the user's cache folder). What is"
	@echo "finished is kept when it is interrupted. A photo then takes a minute or less on two cores."
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  IMG=photo or folder   OUT=folder for results ($(OUT))   HEAD=ict or gnm, head models of scans"
	@echo "  ARGS='keys of the script', as in make reconstruct ARGS='fitting=fast'; docs/configuration.md lists them"
	@echo "  PYTHON=python3.11   VENV=folder of the environment   FACERECON_HOME=folder of the models"
	@echo
	@echo "Something fails: make doctor prints what a bug report needs."

$(VENV)/.installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "facerecon needs Python 3.11 or newer (3.11 is tested); set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) tools/install.py $(VENV) dev
	@touch $@

setup: $(VENV)/.installed ## make the environment alone, with everything that library, scripts and tests need

assets: $(VENV)/.installed ## fetch, verify and convert the open models (once; cached for the user)
	@$(PY) -m facerecon.assets fetch open

reconstruct: assets ## photo -> textured 3D head: IMG=face.jpg HEAD=ict (or gnm) OUT=folder ARGS='fitting=release'
	@$(if $(HEAD),$(PY) -m facerecon.assets fetch "$(HEAD)")
	@$(PY) fit/reconstruct.py img="$(IMG)" out="$(OUT)" $(if $(HEAD),face_model="$(HEAD)") $(ARGS)

evaluate: assets ## the numbers of the paper, on open data, 6 items a row; 20 and more: ARGS='full=true ict=ICT-FaceKit'
	@$(PY) fit/evaluate.py $(ARGS)

doctor: ## what a bug report needs: versions, processor, GPU, state of the models; works before set-up
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m facerecon.assets doctor

test: assets ## the tests (about 18 minutes on 2 cores)
	@$(PY) -m pytest -m "not slow" $(WORKERS) $(ARGS)

$(VENV)/.installed-all: $(VENV)/.installed
	@$(PYTHON) tools/install.py $(VENV) test_all
	@touch $@

test-all: assets gltf-validator $(VENV)/.installed-all ## the tests, slow ones and the Khronos glTF validator included
	@FACERECON_GLTF_VALIDATOR=$(abspath $(VENV))/gltf/node_modules/gltf-validator $(PY) -m pytest $(WORKERS) $(ARGS)

gltf-validator: $(VENV)/.installed
	@test -d $(VENV)/gltf/node_modules/gltf-validator || { export PATH="$(abspath $(VENV))/bin:$$PATH"; \
	  npm install --silent --no-fund --no-audit --prefix $(VENV)/gltf gltf-validator; }

check: $(VENV)/.installed ## lint and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(VENV)/.installed ## format the code in place
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: $(VENV)/.installed ## README, pages and API as web pages in build/docs; a warning is an error
	@$(PY) tools/build_docs.py $(ARGS)

benchmark: assets ## speed of the renderer against PyTorch3D and plain torch
	@$(PY) -m benchmarks.render

clean: ## remove outputs and caches, not the environment
	rm -rf outputs .pytest_cache .ruff_cache build *.egg-info
