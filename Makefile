# make demo | make test | make benchmark
# make notebooks DATA=path EXPERIMENT=name | make predict SCANS=path EXPERIMENT=name
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
SCANS ?= sample
EXPERIMENT ?= $(notdir $(patsubst %/,%,$(DATA)))
PARAMETERS ?=
CONSTRAINTS ?=

READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
STEPS := 01_load_data 02_train_kfold 03_evaluate
OUT := results/$(EXPERIMENT)
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo notebooks predict test benchmark refresh

# Five epochs of three folds: enough for the sample, and done in minutes on two cores.
demo:
	@$(MAKE) --no-print-directory notebooks DATA=sample EXPERIMENT=sample PARAMETERS="-p FOLDS 3 -p EPOCHS 5"
	@$(MAKE) --no-print-directory predict SCANS=sample EXPERIMENT=sample

notebooks: $(READY)
	$(call execute,$(STEPS),DATA,$(DATA))
	@$(VENV)/bin/python -c "import pandas; \
	  print(pandas.read_csv('$(OUT)/summary.csv').round(3).to_string(index=False))"
	@echo "Scores: $(OUT)/scores.csv. Figures: $(OUT)/figures. Notebooks: $(OUT)/notebooks."

predict: $(READY)
	$(call execute,04_predict_new_scans,SCANS,$(SCANS))
	@echo "Labels, maps and tables: $(OUT)/new_scans. Models to pass on: $(OUT)/$(EXPERIMENT).tar."

# Of notebooks the names, then the name and the value of the setting that tells the folder.
define execute
	@mkdir -p "$(OUT)/notebooks"
	@folder="$(3)"; [ "$$folder" = sample ] || folder="$$(cd "$$folder" && pwd)" || exit 1; \
	for step in $(1); do \
	  echo "== $$step"; \
	  $(RUN) papermill notebooks/$$step.ipynb $(OUT)/notebooks/$$step.ipynb --cwd notebooks \
	    --stdout-file - --no-progress-bar --log-level ERROR \
	    -r $(2) "$$folder" -r EXPERIMENT "$(EXPERIMENT)" $(PARAMETERS) || exit 1; \
	done
endef

test: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pytest -n 2 --dist loadfile

# A quarter of an hour on two cores, and 6 GB of temporary files; MONAI brings PyTorch.
benchmark: $(READY)
	$(RUN) pip install -q --disable-pip-version-check -e ".[benchmark]"
	$(RUN) tests.benchmark

# After a change of a notebook: execute it with its own settings, as it is committed.
refresh: $(READY)
	$(RUN) tests.refresh_notebooks

$(READY): requirements.txt pyproject.toml
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install -q --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS)) \
	  -e ".[notebooks,test]"
	touch $(READY)
