# make demo | make test | make benchmark
# make notebooks DATA=path EXPERIMENT=name | make predict SCANS=path EXPERIMENT=name
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
SCANS ?= sample
# By default the name of the folder DATA, made plain.
EXPERIMENT ?=
RESULTS ?= results
PARAMETERS ?=
CONSTRAINTS ?=

# Paths may hold spaces, quotes, dollars and accents: they go to the shell as typed, in quotes,
# and where make itself looks at a file with what means something to make escaped.
quote = '$(subst ','\'',$(value $(1)))'
space := $(subst ,, )
READY := $(subst $(space),\$(space),$(value VENV))/.ready
BIN := $(call quote,VENV)/bin
RUN := $(BIN)/python -m
STEPS := 01_load_data 02_train_kfold 03_evaluate
NAME := from unetseg import settings; import sys; print(settings.name_experiment(*sys.argv[1:]))
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo notebooks predict test benchmark refresh

# Five short epochs of three folds: enough for the sample, and done in minutes on two cores.
demo:
	@$(MAKE) --no-print-directory notebooks DATA=sample EXPERIMENT=sample PARAMETERS="-p FOLDS 3 -p EPOCHS 5 -p STEPS 50"
	@$(MAKE) --no-print-directory predict SCANS=sample EXPERIMENT=sample

notebooks: $(READY)
	@$(call execute,$(STEPS),DATA); \
	$(BIN)/python -c "import pandas, sys; \
	  print(pandas.read_csv(sys.argv[1]).round(3).to_string(index=False))" "$$out/summary.csv"; \
	echo "Scores: $$out/scores.csv. Figures: $$out/figures. Notebooks: $$out/notebooks."

predict: $(READY)
	@$(call execute,04_predict_new_scans,SCANS); \
	echo "Labels, maps and tables: $$out/new_scans. Models to pass on: $$out/$$name.tar."

# Of notebooks the names, then the setting that tells the folder.
define execute
set -e; case $(call quote,PARAMETERS) in *" RESULTS "* | *" EXPERIMENT "*) \
	  echo "Of RESULTS and EXPERIMENT make itself must know: RESULTS=path EXPERIMENT=name."; exit 2;; \
	esac; \
	folder=$(call quote,$(2)); results=$(call quote,RESULTS); data=$(call quote,DATA); name=$(call quote,EXPERIMENT); \
	name=$$($(BIN)/python -c '$(NAME)' "$$name" "$$data"); \
	if [ "$$folder" != sample ]; then \
	  [ -d "$$folder" ] || { echo "$(2)=$$folder: no such folder. Check the path." >&2; exit 2; }; \
	  folder=$$(cd -- "$$folder" && pwd); \
	fi; \
	out="$$results/$$name"; mkdir -p "$$out/notebooks"; \
	for step in $(1); do \
	  echo "== $$step"; \
	  $(RUN) papermill "notebooks/$$step.ipynb" "$$out/notebooks/$$step.ipynb" --cwd notebooks \
	    --stdout-file - --no-progress-bar --log-level ERROR \
	    -r $(2) "$$folder" -r RESULTS "$$results" -r EXPERIMENT "$$name" $(PARAMETERS); \
	done
endef

test: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pytest -n 2 --dist loadfile

# A quarter of an hour on two cores, and 6 GB of temporary files; MONAI brings PyTorch.
benchmark: $(READY)
	$(RUN) pip install -q --disable-pip-version-check -e ".[benchmark]"
	$(RUN) tests.tools.benchmark

# After a change of a notebook: execute it with its own settings, as it is committed.
refresh: $(READY)
	$(RUN) tests.tools.refresh_notebooks

$(subst %,\%,$(READY)): requirements.txt pyproject.toml
	test -x $(BIN)/pip || $(call quote,PYTHON) -m venv $(call quote,VENV)
	$(RUN) pip install -q --disable-pip-version-check \
	  $(if $(CONSTRAINTS),-c $(call quote,CONSTRAINTS)) -e ".[tensorflow,notebooks,test]"
	touch $(call quote,VENV)/.ready
