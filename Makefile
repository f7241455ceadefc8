# make            this help
# make cook       quantize the demonstration model to FP8 and show what it cost
# make test       everything that CI runs on a CPU
# make slow       the tests that take minutes: many families of models, many repetitions, a really pretrained model
# make quick      the tests to edit against: handwriting, sizes and whatever takes seconds
# make prepare    before a commit: imports in order, export, clean, README; then what ruff finds
# make lab        JupyterLab, on a page that lists the recipes
# make site       the notebooks, recipes and gallery as a site, in _docs/site
# make gpu-test   what a GPU job runs; fails where there is no GPU
# make recipes    all of RECIPES in SIZE into OUT, one after another
# make bands      hold the runs in OUT against the gallery's
# make summary    what the runs below runs/ found, as a Markdown table
# make clean      remove the environment and build leftovers; what recipes left in runs/ stays
# make distclean  remove runs/ as well
#
# Variables:  PYTHON=python3.12   the interpreter to build the environment with (3.11 to 3.13)
#             VENV=none           install nothing, use PYTHON as it is (a container, a GPU machine without network)
#             RECIPE=fp8          the recipe that `make cook` runs
#             RECIPES="fp8 int8"  those that `make recipes` runs, with SIZE=smoke and OUT=runs
#             ARGS="-k run"       more arguments for pytest or tqcook
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help cook test slow quick prepare lab site gpu-test recipes bands summary readme clean distclean install

PYTHON ?= python3
VENV ?= .venv
RECIPE ?= fp8
RECIPES ?= $(RECIPE)
SIZE ?= smoke
OUT ?= runs
ARGS ?=

# Empty is as good as unset: modules are compiled once, and not by each of the processes that tests and recipes start.
export PYTHONDONTWRITEBYTECODE =

ifeq ($(VENV),none)
PY := PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" "$(PYTHON)"
STAMP :=
else
PY := "$(VENV)/bin/python"
STAMP := $(VENV)/.installed
endif

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

cook: $(STAMP)
	@$(PY) -m tqcook run $(RECIPE) --size smoke $(ARGS)

PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -q -n 2 --dist loadfile

test: $(STAMP)
	@$(PYTEST) -m 'not slow' tests $(ARGS)

slow: $(STAMP)
	@$(PYTEST) -m slow tests $(ARGS)

quick: $(STAMP)
	@$(PYTEST) -m 'not slow and not heavy and not gpu' tests $(ARGS)

prepare: $(STAMP)
	@$(PY) tests/prepare.py

lab: $(STAMP)
	@$(PY) -m jupyterlab recipes/index.ipynb $(ARGS)

# What only the site needs is installed at its first use.
site: $(STAMP)
	@$(PY) -c 'import furo, myst_nb' 2>/dev/null || $(PY) tests/install.py -c constraints.txt -e '.[site]'
	@$(PY) docs/build.py $(ARGS)

# A machine that was promised a GPU must not pass by skipping: nvidia-smi first, and TQCOOK_REQUIRE_GPU for the tests.
gpu-test: $(STAMP)
	@nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv || { echo "make gpu-test: nvidia-smi finds no NVIDIA GPU here" >&2; exit 1; }
	@TQCOOK_REQUIRE_GPU=1 $(PY) -m pytest -q -m 'gpu or vllm' tests $(ARGS)
	@$(PY) -m tqcook run fp8 --size smoke -p device=cuda -o runs/gpu-test/fp8

# One that fails does not keep the others from running; all that failed are named at the end.
recipes: $(STAMP)
	@failed=; for r in $(RECIPES); do $(PY) -m tqcook run $$r --size $(SIZE) -o $(OUT)/$$r $(ARGS) || failed="$$failed $$r"; done; \
	[ -z "$$failed" ] || { echo "make recipes: failed:$$failed" >&2; exit 1; }

bands: $(STAMP)
	@$(PY) tests/bands.py $(OUT)

summary: $(STAMP)
	@$(PY) tests/make_table.py runs

# README.md comes from nbs/index.ipynb; a test fails when they differ.
readme: $(STAMP)
	@$(PY) tests/make_readme.py

clean:
	rm -rf .venv build dist _docs _proc .pytest_cache .ruff_cache tqcook.egg-info
	find nbs recipes tests tqcook -name __pycache__ -prune -exec rm -rf {} +
	find nbs recipes tests tqcook -name .ipynb_checkpoints -prune -exec rm -rf {} +
	@git config --local --remove-section merge.nbdev-merge 2>/dev/null || true

distclean: clean
	rm -rf runs recipes/runs

install: $(STAMP)

# Without an NVIDIA driver the CPU build of PyTorch is asked for first: it saves several gigabytes, but not every package index offers it.
ifneq ($(VENV),none)
$(STAMP): settings.ini constraints.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit((3, 11) > v[:2] or v[:2] > (3, 13))' || { \
	  echo "tqcook needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is `"$(PYTHON)" -V 2>&1 || true`. Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv (or python3.X-venv for that very version)" >&2; exit 1; }
	@[ -x "$(VENV)/bin/python" ] || "$(PYTHON)" -m venv "$(VENV)"
	@torch=`sed -n 's/^torch==//p' constraints.txt`; \
	install() { $(PY) tests/install.py "$$@"; }; \
	if nvidia-smi >/dev/null 2>&1; then \
	  echo "First use: installing into $(VENV), about 7 GB with PyTorch for CUDA; 3 to 10 minutes on a fast line."; \
	  install "torch==$$torch"; \
	else \
	  echo "First use: installing into $(VENV), about 2 GB (7 GB where no CPU build of PyTorch is to be had); a minute or two on a fast line."; \
	  install "torch==$$torch+cpu" 2>/dev/null || { echo "This package index has no CPU build of PyTorch; taking the general one."; install "torch==$$torch"; }; \
	fi && install -c constraints.txt -e '.[dev]' && $(PY) -m pip check >/dev/null && touch "$@"
	@if [ -d .git ]; then $(HOOKS); fi
	@echo "Installed. To type tqcook, papermill and jupyter as they are: . $(VENV)/bin/activate"
endif

# Two branches that changed one notebook are merged cell by cell, as nbdev_install_hooks would have it (see .gitattributes), but
# with the full path, so that git finds the command outside of the environment too, and without writing to anyone's home.
HOOKS = git config --local merge.nbdev-merge.name 'notebooks, cell by cell' && \
	git config --local merge.nbdev-merge.driver '"$(abspath $(VENV))/bin/nbdev_merge" %O %A %B %P'
