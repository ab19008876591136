# demo: the whole path on embedded data, up to how often what was trained succeeds. venv: what all else here needs. test: the fast lane. test-all: what CI runs.
# lint: what must hold before a commit.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = $(VENV)/bin
HASH := $(shell (sha256sum requirements.txt || shasum -a 256 requirements.txt) 2> /dev/null | cut -c1-16)
STAMP = $(VENV)/.installed-$(HASH)
DEMO = $(VENV)/.demo-$(HASH)
RUN ?= runs/demo
# The demo's episodes, the same for all who act.
ROLLOUT = $(BIN)/python -m experiments.rollout --sim blocks --episodes 144

.PHONY: demo test test-all lint format venv
venv: $(STAMP)

# What the tests need. The stamp's name holds the hash of the pins, so that a new clone, whose files are all new, finds a
# cached environment. pip says what it downloads: it takes minutes.
$(STAMP): | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	rm -f $(VENV)/.installed-*
	touch $@

# What training and export need, and `vla-jax`, at the same versions: less than two thirds of the size.
$(DEMO): | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -c requirements.txt -e ".[export]"
	rm -f $(VENV)/.demo-*
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON): expected Python 3.11 or newer; install it, or run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

demo: $(if $(wildcard $(STAMP)),,$(DEMO))
	$(BIN)/python -m data_pipelines.builders.blocks --out $(RUN)/data
	$(BIN)/python -m experiments.view --root $(RUN)/data --dataset blocks --out $(RUN)/data.html
	$(BIN)/python -m experiments.pretrain --config=blocks.py --config.data.root=$(RUN)/data --workdir=$(RUN)/policy
	$(BIN)/python -m experiments.evaluate --workdir=$(RUN)/policy
	$(ROLLOUT) --policy $(RUN)/policy --out $(RUN)/acts/policy
	$(ROLLOUT) --policy $(RUN)/policy --blank --out $(RUN)/acts/blanked
	$(ROLLOUT) --policy random --out $(RUN)/acts/random
	$(ROLLOUT) --policy expert --out $(RUN)/acts/expert
	$(BIN)/python -m experiments.export --checkpoint $(RUN)/policy/checkpoints --out $(RUN)/artefact
	OMP_NUM_THREADS=1 $(ROLLOUT) --policy $(RUN)/artefact --out $(RUN)/acts/artefact
	$(BIN)/python -m experiments.rolling.beside $(RUN)/acts/policy $(RUN)/acts/artefact $(RUN)/acts/blanked \
	    $(RUN)/acts/random $(RUN)/acts/expert --alike policy artefact

test: $(STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
