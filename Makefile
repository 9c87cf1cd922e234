# make demo | make test need only Python >= 3.10 and make; everything they install goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-min check docs wheel clean

setup: .venv/.installed

# TensorRT-RTX: the meta package is a source distribution, so its two wheels are named; where they do not exist
# (no x86-64 Linux) its tests skip and say so. nvidia-pytriton brings a tritonserver; its own Python needs are not ours.
# The vector databases take 350 MB. Where one of them has no wheel, the tests of docs/vector-databases.md skip and say so.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=23'
	$(BIN)/python -m pip install --quiet -e '.[cpu,train,timm,parquet,search,ray,native,serve,docs,dev]'
	-$(BIN)/python -m pip install --quiet --no-deps 'tensorrt-rtx-cu13-libs>=1.0' 'tensorrt-rtx-cu13-bindings>=1.0'
	-$(BIN)/python -m pip install --quiet --no-deps 'nvidia-pytriton>=0.7'
	-$(BIN)/python -m pip install --quiet -e '.[vectordb]'
	touch $@

demo: setup
	$(BIN)/cgd-deploy demo

# If a test kills its worker, the run ends: with --dist loadfile, pytest-xdist would wait for ever.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

# The oldest versions that pyproject.toml allows, in an environment of their own.
MIN := build/min
test-min:
	$(PYTHON) -m venv $(MIN)
	grep -oE '"[a-z0-9-]+(\[[a-z,]+\])?>=[0-9.]+"' pyproject.toml | sed -E 's/"//g; s/\[.*\]//; s/>=/==/' | sort -u > $(MIN)/oldest.txt
	$(MIN)/bin/python -m pip install --quiet -c $(MIN)/oldest.txt -e '.[cpu,train,timm,parquet,search,ray,native,serve,dev]'
	$(MIN)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

# mypy looks for installed names; the links give our folders theirs.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types
	ln -sfn ../../train build/types/cgd_train
	ln -sfn ../../export build/types/cgd_export
	ln -sfn ../../cgd_deploy build/types/cgd_deploy
	$(BIN)/mypy
	$(MAKE) docs

# The pages in build/site. --strict fails at a link that leads nowhere; with --quiet it would not count the warnings.
# NO_MKDOCS_2_WARNING is how Material lets its notice about later versions be switched off.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds dist/, then runs every command of the wheel in an environment that has nothing else.
WHEEL := build/wheel
EMPTY := $(WHEEL)/empty/bin
wheel:
	rm -rf dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)/tools
	$(WHEEL)/tools/bin/python -m pip install --quiet build twine
	$(WHEEL)/tools/bin/python -m build > $(WHEEL)/build.log
	$(WHEEL)/tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(WHEEL)/empty
	$(EMPTY)/python -m pip install --quiet "$$(echo dist/*.whl)[cpu]"
	$(EMPTY)/cgd-deploy --version
	$(EMPTY)/cgd-deploy doctor
	$(EMPTY)/python -I -c "from cgd_deploy.cli.app import COMMANDS; print(*COMMANDS)" > $(WHEEL)/commands
	for command in $$(cat $(WHEEL)/commands); do $(EMPTY)/cgd-deploy $$command --help > $(WHEEL)/help || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info artifacts
