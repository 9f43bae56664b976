# `make demo` and `make test` need only Python 3.11+, pip, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test check bench bench-density mutants clean

# Install again only after a change of the dependencies.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## install, train on the embedded dataset, evaluate, draw
	rm -rf $(DEMO)
	$(BIN)/retinanet data sample $(DEMO)/parts
	$(BIN)/retinanet train $(DEMO)/parts --out $(DEMO)/run --data.size 320 --train.epochs 6
	$(BIN)/retinanet eval $(DEMO)/run/best.safetensors $(DEMO)/parts --out $(DEMO)/eval
	$(BIN)/retinanet detect $(DEMO)/run/best.safetensors $(DEMO)/parts/images/00000[16].jpg --out $(DEMO)/detections
	@echo "open $(DEMO)/eval/report.html; then train on your own images: $(BIN)/retinanet train DATA --out RUN"

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed  ## compare the speed with torchvision (about six minutes)
	$(BIN)/retinanet bench --out benchmarks/results

mutants: $(VENV)/.installed  ## make each fact of docs/paper-to-code.md wrong; its test must fail (some minutes)
	$(BIN)/python tests/run_mutants.py

bench-density: $(VENV)/.installed  ## measure images with 1 to 10,000 objects (about fifteen minutes)
	$(BIN)/retinanet bench density dense-image --out benchmarks/results
	mv benchmarks/results/density.svg docs/images/

clean:
	rm -rf $(VENV) $(DEMO) runs dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
