# make demo | test | test-all | lint | setup | clean. Everything is installed into .venv, in versions pinned by constraints.txt.
PYTHON ?= python3
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export NO_MKDOCS_2_WARNING = 1

PYTEST = .venv/bin/python -m pytest -q --durations 15

.PHONY: setup demo test test-all lint clean

setup: .venv/.installed-dev

# What a run needs, and no more.
.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv: a minute or so ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -qq -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the tools of developers into .venv ..."
	@.venv/bin/pip install -qq -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.installed
	@.venv/bin/hybridiff generate --config demo

# The fast tier: no servers, few processes.
test: setup
	@$(PYTEST) -m "not slow" --numprocesses 2 --dist worksteal

# The slow tier besides. Tests on SLURM run by themselves: they keep the clock of its time limits.
test-all: test
	@$(PYTEST) -m slow --numprocesses 2 --dist loadfile --ignore tests/slurm
	@$(PYTEST) -m slow tests/slurm

lint: setup
	@.venv/bin/ruff check -q .
	@.venv/bin/ruff format -q --check . || { echo "not formatted; to do so: .venv/bin/ruff format" >&2; exit 1; }
	@.venv/bin/mypy --no-error-summary
	@.venv/bin/mkdocs build --strict --quiet --site-dir build/site

# The environment (.venv) and what the jobs made (runs) stay.
clean:
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info lightning_logs
	@find hybridiff jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
