# Everything a checkout needs: Python 3.11 or newer, and make. `make` alone lists the targets.
#
# VENV              the environment; several checkouts may share one (it takes about 6 GB)
# PYTHON_BOOTSTRAP  the Python that creates it
# PYTEST_ARGS       what to pass to pytest, e.g. make test PYTEST_ARGS="tests/data -x"

VENV ?= .venv
PYTHON_BOOTSTRAP ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile

PYTHON := $(VENV)/bin/python
EXTRAS := dev,hf,bench,ray

# The environment counts as up to date while this file exists. Its name holds a checksum of what
# was installed from, not a time: a fresh clone beside a shared environment reinstalls nothing.
KEY := $(shell (echo "$(EXTRAS)"; cat pyproject.toml requirements.txt) | cksum | tr -c '0-9\n' '-')
STAMP := $(VENV)/.kinetics400-$(KEY)

# The environment holds a link to the checkout that installed last. This one's code comes first,
# also in the processes that tests and the demo start elsewhere.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help env demo test check format bench bench-step fidelity fidelity-augment fidelity-curves faults faults-full doctor-proof broken-proof broken-train docs clean

help:  ## list the targets
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## create or update the environment

$(STAMP):
	@$(PYTHON_BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON_BOOTSTRAP) is missing or older than Python 3.11; name another with PYTHON_BOOTSTRAP=..." >&2; exit 2; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON_BOOTSTRAP) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB, a few minutes the first time"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.kinetics400-*
	@touch $@

demo: $(STAMP)  ## generate data, pretrain, finetune and evaluate a tiny model on the CPU
	$(PYTHON) -m kinetics400 demo

# Two processes, one thread each: as many as the smallest supported machine has cores.
test: $(STAMP)  ## run the tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PYTEST_ARGS)

check: $(STAMP)  ## lint, formatting, types, import directions, forbidden calls
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q tests/test_layers.py tests/test_forbidden.py

format: $(STAMP)  ## format the code and sort imports
	$(PYTHON) -m ruff check --select I --fix .
	$(PYTHON) -m ruff format .

bench: $(STAMP)  ## measure reading against other loaders on one core, some minutes
	libraries=$$($(PYTHON) benchmarks/ffmpeg_libraries.py $(VENV)/ffmpeg) && \
	  OMP_NUM_THREADS=1 LD_LIBRARY_PATH=$$libraries $(PYTHON) -m kinetics400 bench loader --scaling --json benchmarks/results/loader.json

# A CPU shows what a GPU shows of operations and memory, not of speed: `benchmarks/gpu.sh`.
bench-step: $(STAMP)  ## measure training steps against transformers and a plain one on one core, 15 minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench step --accelerator cpu --json benchmarks/results/step_cpu.json
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench step --accelerator cpu --method finetuning --json benchmarks/results/step_cpu_finetuning.json
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench step --accelerator cpu --quick --model_name MCG-NJU/videomae-base --json benchmarks/results/step_cpu_base.json
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench step --accelerator cpu --quick --model_name MCG-NJU/videomae-large --batch_size 1 --json benchmarks/results/step_cpu_large.json
	$(PYTHON) docs/tables

fidelity-augment: $(STAMP)  ## compare augmentation with timm, PIL and torchvision, a minute
	OMP_NUM_THREADS=1 $(PYTHON) -m kinetics400 bench augment-fidelity --json results/fidelity_augment.json
	$(PYTHON) docs/tables

fidelity: fidelity-augment  ## compare every published rule with its reference, a few minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench fidelity --json results/fidelity.json
	$(PYTHON) docs/tables

fidelity-curves: $(STAMP)  ## compare learning curves with a plain loop around transformers, 3 minutes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) -m kinetics400 bench fidelity-curves --json results/fidelity_curves.json
	$(PYTHON) docs/tables
	$(PYTHON) docs/figures.py

faults: $(STAMP)  ## inject every fault, with and without its guard, half an hour
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) benchmarks/faults/campaign.py results/faults.json
	$(PYTHON) docs/tables

faults-full: $(STAMP)  ## the same with all of exact resume: stops x workers x ranks, two hours
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PYTHON) benchmarks/faults/campaign.py results/faults.json --full
	$(PYTHON) docs/tables

doctor-proof: $(STAMP)  ## time the doctor on 246,535 files (1 GB of disk for some minutes)
	$(PYTHON) benchmarks/doctor_speed.py benchmarks/results/doctor_speed.json

# CLIPS: a folder of real videos that are whole for their first seconds, and strange to the network.
broken-proof: $(STAMP)  ## measure what the doctor finds of torn pictures, ten minutes
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/broken_frames/measure.py benchmarks/results/broken_frames.json $(if $(CLIPS),--clips $(CLIPS))
	$(PYTHON) docs/tables

# FOOTAGE: a folder of videos and photographs; benchmarks/broken_frames/footage.py names packages.
broken-train: $(STAMP)  ## train the network that judges torn pictures, on two cores an hour or more
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/broken_frames/train.py $(FOOTAGE)

docs: $(STAMP)  ## fill the tables of README.md and docs/, draw the figures
	$(PYTHON) docs/tables
	$(PYTHON) docs/figures.py

clean:  ## remove build products and caches; not the environment, data, weights or results
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
