# STACK=official uses OpenMMLab's packages, STACK=onedl the maintained forks.
STACK ?= official
VENV := $(if $(filter official,$(STACK)),.venv,.venv-$(STACK))
PY := $(VENV)/bin/python
TESTS ?= tests
# Processes that share the tests, file by file, in the order of tests/conftest.py.
WORKERS ?= auto
# Threads that wait spin for a while, and not for ever, as in mmfocal/__init__.py.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 6000

.PHONY: help env demo demo-seg test coverage lint docs docs-links doctor gpu-check \
  clients-env clients dist clean

help:
	@echo "make demo     train a small detector on drawn shapes, and draw what it finds; needs no GPU"
	@echo "make demo-seg the same for segmentation, with a small UPerNet"
	@echo "make test     lint and the whole test suite; TESTS='tests/test_geometry.py ...' for a part,"
	@echo "              WORKERS=4 for that many processes instead of one for each core"
	@echo "make coverage what of mmfocal/ the tests run, and which lines they do not"
	@echo "make docs     the pages of docs/ and of the API, in docs/_build/html; make docs-links asks"
	@echo "              the network whether links to other sites are alive"
	@echo "make doctor   versions, operators, GPU, and how to repair what does not fit;"
	@echo "              make gpu-check tests kernels and training on a GPU, and times them"
	@echo "make clients  tests of other people's tools on our models, in an environment of their own"
	@echo "make dist     a wheel and a source archive in dist/, checked for an index"
	@echo "make env      only the environment; each of the above makes it first"
	@echo "make lint     ruff, and which way imports point, as in make test"
	@echo "make clean    remove environments and caches of this checkout"
	@echo
	@echo "STACK=onedl          the OneDL forks, in .venv-onedl"
	@echo "PYTHON=python3.11    interpreter of a new environment: 3.11, 3.12, 3.13, and 3.14"
	@echo "                     for STACK=onedl"
	@echo "TORCH_INDEX_URL=...  where to find PyTorch, such as its index of CPU builds: without a GPU"
	@echo "                     that saves gigabytes"
	@echo "WHEELS=...           folders that hold an mmcv wheel; else it is compiled once and kept in"
	@echo "                     MMFOCAL_CACHE (~/.cache/mmfocal)"

env:
	@requirements/install.sh $(STACK) $(VENV)

demo: env
	@$(PY) tools/demo.py

demo-seg: env
	@$(PY) tools/demo.py segmentation

# On the CPU, also where there are GPUs, which `make gpu-check` tests.
test: lint
	@CUDA_VISIBLE_DEVICES= $(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(TESTS)

coverage: env
	@CUDA_VISIBLE_DEVICES= $(PY) -m coverage run -m pytest $(TESTS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report --show-missing --skip-covered

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache

docs: env
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Wrote docs/_build/html/index.html"

docs-links: env
	@$(PY) -m sphinx -q -b linkcheck docs docs/_build/links

doctor: env
	@$(PY) tools/doctor.py

gpu-check: env
	@PYTHON=$(PY) tools/dev/gpu_check.sh

clients-env:
	@requirements/install.sh official .venv-clients clients

clients: clients-env
	@.venv-clients/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile tests/clients

# By the oldest setuptools that pyproject.toml allows: what it can build, all newer ones can. The
# wheel is made from the archive, so that the archive has all that it takes.
dist:
	@$(or $(PYTHON),python3) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet -r requirements/dist.txt
	@rm -rf build dist *.egg-info
	@.venv-dist/bin/python -m build --no-isolation >.venv-dist/build.log || \
	  { cat .venv-dist/build.log; exit 1; }
	@rm -rf build *.egg-info
	@.venv-dist/bin/python -m twine check --strict dist/*

clean:
	rm -rf .venv .venv-onedl .venv-clients .venv-dist .coverage* build dist *.egg-info .pytest_cache \
	  .ruff_cache docs/_build
