# Each target does its own set-up: a virtual environment in .venv, installed from the pinned constraints.txt.
PYTHON ?= python3.11
PIP = .venv/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt

MINUTES ?= 60

.PHONY: quickstart test check slow crash integration docs clean

quickstart: .venv/.core  ## fine-tune a small model from scratch, see it learn
	@.venv/bin/python -m flows.quickstart

test: check  ## everything that CI runs
	.venv/bin/python -m pytest

check: .venv/.dev  ## lint, types, import contract
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

slow: .venv/.dev  ## the tests that take minutes each
	.venv/bin/python -m pytest -m slow

crash: .venv/.dev  ## the crash laboratory: kills and network faults for MINUTES, and a table of what they did
	nice .venv/bin/python -m tests.crash --minutes $(MINUTES)

integration: .venv/.dev  ## PostgreSQL, Prefect server, workers, S3: schedule, trigger, retry, cancel, rerun
	.venv/bin/python -m pytest -m integration tests/test_integration.py

docs: .venv/.dev  ## the manual, strict, into build/manual
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --config-file infra/mkdocs.yml

.venv/.core: pyproject.toml constraints.txt
	@echo "installing into .venv (about two minutes, once)"
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/.core
	@echo "installing the test tools"
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
