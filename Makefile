# `make demo` trains, evaluates and pictures a long-tailed model on real digits; `make test` passes the tests.
# Both make a virtual environment in .venv and install what they need into it.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
COMPILER := .venv/.tpu_compiler

.PHONY: demo test test-slow table lint clean
demo: $(INSTALLED)
	$(BIN)/python -m noisytwins_jax.sweep --config=configs/digits_lt.py --methods=baseline,noisytwins --jobs=2

# One worker for each core; a worker needs up to 5.5 GB of memory.
WORKERS := -n logical --maxprocesses=8 --dist=worksteal
test: $(INSTALLED) $(COMPILER)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-slow: $(INSTALLED) $(COMPILER)
	$(BIN)/python -m pytest $(WORKERS) -m slow

# The table of README.md: eleven methods, three seeds; an hour and a half on two cores.
TABLE := baseline,ada,gsr,d2dce,contrastive,transitional,utlo,noise,decorrelation,noisytwins,transitional_noisytwins
table: $(INSTALLED)
	$(BIN)/python -m noisytwins_jax.sweep --config=configs/digits_lt.py --methods=$(TABLE) --seeds=0,1,2 --jobs=2 --out=runs/table

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# The TPU compiler, half a gigabyte, for the tests of --mode=compile; where it cannot be installed they are skipped.
$(COMPILER): $(INSTALLED)
	-$(BIN)/python -m pip install --quiet --editable '.[compile]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
