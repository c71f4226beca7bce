# `make demo` and `make test` do all their own set-up: only Python 3.11+ and make are needed.
# Choose another interpreter with `make demo PYTHON=/path/to/python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := $(VENV)/.extras

.PHONY: demo test docs notebook examples clean

demo: $(READY)
	$(BIN)/efface demo --home .efface/demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist loadscope --no-loadscope-reorder

# The pages from the docstrings, in build/docs; a link that leads nowhere is an error.
docs: $(EXTRAS)
	$(BIN)/mkdocs build --strict

# The example notebook, built and executed anew.
notebook: $(EXTRAS)
	$(BIN)/python examples/notebook/build.py

# Every example in full, as its README says; `make test` runs them in a small form. Of the chest
# X-rays name the file: make examples CHEST=/path/to/pneumoniamnist.npz. Without it a stand-in
# serves, on which nothing can be shown: exit code 3. The texts' packages are 85 MB.
CHEST ?=
examples: $(READY)
	cd examples/chest-xray && rm -rf .efface && PATH=$(CURDIR)/$(BIN):$$PATH && python prepare.py $(CHEST) && \
	  efface train && { efface forget --client client-2 || { test $$? -eq 3 && test -z "$(CHEST)"; }; }
	cd examples/heart-tables && rm -rf .efface && PATH=$(CURDIR)/$(BIN):$$PATH && python prepare.py && \
	  for site in north south west; do \
	    efface data columns "table:$$site.csv?label=cultivar&drop=site" -o $$site.toml || exit; done && \
	  efface data columns north.toml south.toml west.toml -o columns.toml && efface train && \
	  efface forget --class barolo --trial && efface forget --client client-2
	$(BIN)/python -m pip install --quiet --no-deps -r examples/reports/requirements.txt
	cd examples/reports && rm -rf .efface && PATH=$(CURDIR)/$(BIN):$$PATH && \
	  efface train && efface forget --client client-0 && efface forget --class skin
	cd examples/own-flower-app && PATH=$(CURDIR)/$(BIN):$$PATH && \
	  export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 && \
	  flwr run . local --stream --federation-config "num-supernodes=5 client-resources-num-cpus=1" | \
	  tee /dev/stderr | grep '^sga' > /dev/null  # flwr ends with 0 even where the run failed
	MPLBACKEND=agg $(BIN)/python examples/notebook/life.py

# Written last, so that a broken installation is done again.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Python must be 3.11, 3.12 or 3.13, got: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,simulation]'
	@touch $(READY)

$(EXTRAS): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[docs,notebook]'
	@touch $(EXTRAS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
