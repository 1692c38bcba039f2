# make setup | demo | test | lint.  Needs Python 3.11+, make and pip; fetches nothing but packages.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
CONFIG := configs/demo/retinanet_r101_r50.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint clean
setup: $(VENV)/.installed

# mmcv and imaug pull both opencv wheels, and both own the folder cv2/. Only the headless one may stay:
# the other needs libGL, which bare machines lack. Removing it takes cv2/ along, hence the re-install.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11+ is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[dev]'
	$(PY) -m pip uninstall --quiet --yes opencv-python
	$(PY) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless==4.12.0.88
	@touch $@

demo: setup
	$(PY) demo/make_data.py --out work_dirs/demo/data
	$(PY) stage1_cache_teacher.py --config $(CONFIG)
	$(PY) stage2_distill.py --config $(CONFIG)

test: setup
	$(PY) -m ruff check . && $(PY) -m ruff format --check --quiet .
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile

lint: setup
	$(PY) -m ruff check . && $(PY) -m mypy

clean:
	rm -rf work_dirs .pytest_cache .mypy_cache .ruff_cache
