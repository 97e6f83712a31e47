# Two commands on a fresh machine: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
VENV ?= .venv
# Another torch build: make demo TORCH="torch==2.13.0 --index-url ..." (see README, Install)
TORCH ?= -r constraints.txt
DATASET ?= synthetic
RUN ?= runs/demo-$(DATASET)
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
export MPLBACKEND := Agg

# Files in wheel and sdist carry the time of the commit, so that the same commit gives the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

.PHONY: demo test lint types rules unit other-processor format bench docs dist bare clean-machine clean help

help:
	@echo "make demo [DATASET=ns1]   fit a model, print its scores, write an HTML report"
	@echo "make test                 linters, type checks, rules and tests"
	@echo "make lint|types|rules|unit   one of these alone;   make format   rewrite the layout"
	@echo "make other-processor      the numerical tests with the instructions of an old processor"
	@echo "make docs                 the documentation site in docs/_build/html, warnings as errors"
	@echo "make bench                the benchmarks behind benchmarks/RESULTS.md"
	@echo "make dist                 wheel and sdist in dist/, compared with the checkout"
	@echo "make bare                 both installed in a new environment, and used from an empty folder"
	@echo "make clean-machine        README, pages and examples of the command, from a copy with an empty cache"

# torch goes first and alone: whatever else is installed then finds it there and brings no second build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch into $(VENV): the largest part, some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml src/deepSTRF/__init__.py
	@echo "installing deepSTRF and what it needs"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

demo: $(VENV)/.package
	$(BIN)/deepstrf fit --dataset $(DATASET) --out $(RUN) --overwrite

test: lint types rules unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src tests tools docs benchmarks examples README.md CHANGELOG.md CONTRIBUTING.md SUPPORT.md SECURITY.md
	$(BIN)/vulture
	$(BIN)/python tools/structure.py --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

rules: $(VENV)/.dev
	$(BIN)/python tools/rules.py
	$(BIN)/python tools/docs_tables.py --check

# Two workers of one thread each: torch's own threads would fight over the cores.
unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

# The numerical tests as an old processor computes them: other vector units, other summation orders.
other-processor: $(VENV)/.dev
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=1 \
	MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	tests/dsp tests/metrics tests/models tests/datasets tests/ns1 tests/synthetic tests/training tests/interpret \
	tests/recordings tests/baselines tests/crossval

# Runs the notebooks and the gallery (on NS1 where it lies), then follows every link inside the site.
docs: $(VENV)/.docs
	rm -rf docs/_build/html
	$(BIN)/python -m sphinx -b html -j 2 -W --keep-going -q docs docs/_build/html
	$(BIN)/python tools/site_links.py docs/_build/html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run_all.py

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tools/check_dist.py dist

bare: dist
	$(BIN)/python tools/bare_install.py dist --torch '$(TORCH)'

clean-machine:
	$(PYTHON) tools/clean_machine.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist docs/_build docs/api docs/auto_gallery
