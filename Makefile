# STACK=official uses OpenMMLab's packages, STACK=onedl the maintained forks.
STACK ?= official
VENV := $(if $(filter official,$(STACK)),.venv,.venv-$(STACK))
PY := $(VENV)/bin/python
TESTS ?= tests

.PHONY: help env demo test lint doctor clean

help:
	@echo "make demo     train a small detector on drawn shapes, with pictures (minutes, no GPU needed)"
	@echo "make test     lint and the whole test suite; TESTS='tests/test_geometry.py ...' for a part"
	@echo "make doctor   versions, operators, GPU, and how to repair what does not fit"
	@echo "make env      the environment alone; each of the above makes it first"
	@echo "make lint     ruff, as in make test"
	@echo "make clean    remove environments and caches of this checkout"
	@echo "STACK=onedl for the OneDL forks; PYTHON=..., TORCH_INDEX_URL=... see requirements/install.sh"

env:
	@requirements/install.sh $(STACK) $(VENV)

demo: env
	@$(PY) tools/demo.py

test: env lint
	@$(PY) -m pytest $(TESTS)

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

doctor: env
	@$(PY) tools/doctor.py

clean:
	rm -rf .venv .venv-onedl build *.egg-info .pytest_cache .ruff_cache
