# make setup | demo | test | test-upstream | lint | gpu.  Needs Python 3.11+, make and pip; fetches nothing but packages.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
HEADLESS := opencv-python-headless==4.12.0.88
TIMM := 'timm>=1.0.15,<1.1'
CONFIG := configs/demo/retinanet_r101_r50.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles what is imported and keeps it, unless this variable of the environment forbids that.
LAZY := $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

.PHONY: setup demo test test-upstream lint gpu gpu-wheels clean
setup: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11+ is needed, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# mmcv and imaug pull both opencv wheels, and both own the folder cv2/. Only the headless one may stay:
# the other needs libGL, which bare machines lack. Removing it takes cv2/ along, hence the re-install.
define install
$(PY) -m pip install --quiet $(LAZY) --editable '$(1)'
$(PY) -m pip uninstall --quiet --yes opencv-python
$(PY) -m pip install --quiet $(LAZY) --force-reinstall --no-deps $(HEADLESS)
endef

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(call install,.)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(call install,.[dev])
	@# Without its torchvision: the wheels of that fit only the ordinary build of torch. Tests replace what timm imports.
	$(PY) -m pip install --quiet $(LAZY) --no-deps $(TIMM)
	@touch $(VENV)/.installed $@

# The demo's thin networks are slower on two threads than on one.
demo: export OMP_NUM_THREADS ?= 1
demo: $(VENV)/.installed
	$(PY) demo/make_data.py --out work_dirs/demo/data
	$(PY) stage1_cache_teacher.py --config $(CONFIG)
	$(PY) stage2_distill.py --config $(CONFIG)

test: setup
	$(PY) -m ruff check . && $(PY) -m ruff format --check --quiet .
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile

# The tests that meet mmdet, with upstream's mmdet, mmcv and mmengine, in a virtual environment of their own.
UPSTREAM ?= .venv-upstream
MEETS_MMDET := $(addprefix tests/,stage1 stage2 teacher data mmdet_compat test_configs.py test_installed.py)
test-upstream: $(UPSTREAM)/.installed
	$(UPSTREAM)/bin/python -m pytest -n 2 --dist loadfile $(MEETS_MMDET)

$(UPSTREAM)/.installed: pyproject.toml tests/upstream_requirements.txt
	$(PYTHON) -m venv $(UPSTREAM)
	$(UPSTREAM)/bin/python -m pip install --quiet -r tests/upstream_requirements.txt
	$(UPSTREAM)/bin/python -m pip install --quiet --no-deps --editable .
	$(UPSTREAM)/bin/python -m pip uninstall --quiet --yes opencv-python
	$(UPSTREAM)/bin/python -m pip install --quiet --force-reinstall --no-deps $(HEADLESS)
	$(UPSTREAM)/bin/python -m pip install --quiet --no-deps $(TIMM)
	@touch $@

lint: setup
	$(PY) -m ruff check . && $(PY) -m mypy

# Eight minutes on one GPU. With `make gpu PY=python3` the packages are python3's, and no .venv is made.
OUT ?= work_dirs/gpu/results
gpu: $(if $(filter file,$(origin PY)),setup)
	@$(PY) benchmarks/gpu.py --out $(OUT) --minutes 8

# Packages for a machine without network and with another Python. The onedl packages come as sources: wheels are built here.
WHEELS ?= wheels
GPU_PYTHON ?= 3.12
MANYLINUX := $(foreach tag,_2_28 _2_27 _2_24 _2_17 2014 1,--platform manylinux$(tag)_x86_64)
gpu-wheels: setup
	$(PY) -m pip wheel --quiet --no-deps -w $(WHEELS) $$(grep onedl benchmarks/gpu_requirements.txt)
	$(PY) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
		$(MANYLINUX) --find-links $(WHEELS) -d $(WHEELS) -r benchmarks/gpu_requirements.txt

clean:
	rm -rf work_dirs .pytest_cache .mypy_cache .ruff_cache
