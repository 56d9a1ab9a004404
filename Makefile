PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := tests/constraints.txt
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

.PHONY: demo test slow lint docs bench browser clean

demo: $(VENV)/base.stamp
	$(BIN)/python -m launch.run --config=configs/demo.py --workdir=runs/demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/unit tests/integration

# Everything that `make test` leaves out: the acceptance tests, and the longer proofs of the other tiers. Programs for
# absent TPUs and GPUs need their compilers, 1.2 GB; a machine that has none of the chips stays on its CPU.
slow: export JAX_PLATFORMS ?= cpu
slow: $(VENV)/test.stamp browser
	$(INSTALL) --no-compile --editable '.[test,plan]' --constraint $(CONSTRAINTS)
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/acceptance
	$(BIN)/python -m pytest -q -m slow tests/unit tests/integration

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --strict --quiet --site-dir build/site

docs: $(VENV)/test.stamp
	$(MKDOCS) serve

bench: $(VENV)/test.stamp
	mkdir -p runs
	$(BIN)/python -m launch.bench_cka --out=runs/bench_cka.json
	$(BIN)/python -m launch.bench_forward --out=runs/bench_forward.json
	$(BIN)/python -m launch.bench_tuning --out=runs/bench_tuning.json
	$(BIN)/python -m launch.bench_token --out=runs/bench_token.json

# The page test looks at the report in headless Chromium; without one it is skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
	  echo "no chromium: the browser test will be skipped"

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/base.stamp: setup.py
	@echo "Installing mossa_jax and its libraries into $(VENV): 1.4 GB on the disk, about a minute, nothing elsewhere"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --editable .
	@touch $@

# Python compiles what the tests import; compiling all packages at installation takes longer.
$(VENV)/test.stamp: setup.py $(CONSTRAINTS)
	@echo "Installing mossa_jax with what its tests need into $(VENV), torch among it: several GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile --editable '.[test]' --constraint $(CONSTRAINTS)
	touch $(VENV)/base.stamp $@

clean:
	rm -rf $(VENV) runs build *.egg-info
