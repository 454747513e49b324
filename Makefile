# Every target makes the environment it needs, in .venv. Another Python: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= demo

.PHONY: help demo test lab docs lint types bench quality clean

help:
	@echo "make demo               a Sentinel cube to embeddings to a first map, in $(OUT)/"
	@echo "make demo S2=.. S1=..   the same on your own files (netCDF, Zarr or a d-pixel tile folder)"
	@echo "make test               run the whole test suite"
	@echo "make lab                open JupyterLab on the notebooks"
	@echo "make docs               build the documentation into docs/_build/html (NOTEBOOKS=run runs the notebooks too)"
	@echo "make lint, make types   check style and types"
	@echo "make bench              measure this machine: embedding, questions, heads, the explorer, start-up, Dask, scale"
	@echo "make quality            judge the encoder in the package (ten minutes; real data in DATA, ../shared/data)"
	@echo "make clean              remove the environment and what the demo wrote"

demo:
	@$(PYTHON) scripts/bootstrap.py $(VENV)
	@$(BIN)/tessera-xr demo --out "$(OUT)" $(if $(S2),--s2 "$(S2)") $(if $(S1),--s1 "$(S1)") \
	  $(if $(PERIOD),--period "$(PERIOD)") $(if $(MODEL),--model "$(MODEL)")

test:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lab:
	@$(PYTHON) scripts/bootstrap.py $(VENV) lab
	@$(BIN)/jupyter lab notebooks

docs:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@$(BIN)/python scripts/check_site.py docs/_build/html

lint:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/mypy

bench:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/python -m benchmarks

quality:
	@$(PYTHON) scripts/bootstrap.py $(VENV) dev
	@$(BIN)/python -m benchmarks.encoder_quality $(if $(DATA),--data "$(DATA)")

clean:
	rm -rf $(VENV) $(OUT) docs/_build docs/notebooks build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
