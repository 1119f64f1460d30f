PYTHON ?= python3.11
BIN := .venv/bin
WORKERS ?= 2
SHARED = -n $(WORKERS) --dist worksteal

export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # every process of the tests would compile the package anew

.PHONY: demo serve docs test fuzz quick style types all-tests unit-tests golden cluster clean

demo: .venv/demo
	rm -rf demo
	$(BIN)/nearfar demo demo

serve: .venv/web
	$(BIN)/nearfar serve

test quick all-tests unit-tests golden: export OMP_NUM_THREADS := 1

test: style
	@$(MAKE) --no-print-directory -j2 all-tests types

quick: style
	@$(MAKE) --no-print-directory -j2 unit-tests types

style: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/test
	$(BIN)/mypy

all-tests: .venv/test
	$(BIN)/pytest $(SHARED)

unit-tests: .venv/test
	$(BIN)/pytest $(SHARED) -m 'not process and not slow' tests/unit

fuzz: export OMP_NUM_THREADS := 1
fuzz: .venv/test
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} $(BIN)/pytest -s tests/fuzz

docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/test
	$(BIN)/mkdocs build --strict --quiet

golden: .venv/test
	$(BIN)/pytest tests/golden --update-golden

cluster: .venv/test
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray]'
	PYTHONPATH=src:tests $(BIN)/python tests/cluster/ray_nodes.py
	PYTHON=$(abspath $(BIN)/python) tests/cluster/slurm.sh

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

.venv/web: .venv/demo
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo,web,metrics]'
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,metrics,faces,data,web,private,c2pa,heic,medical,docs,s3]'
	touch $@

clean:
	rm -rf .venv demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis
