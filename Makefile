# make run | test | check: each makes the virtual environment on first use.
# make results: the raw figures of the README, resumable; a day or more on two quiet cores, most of it the comparison.
# CIFAR10 holds train/CLASS/*.png and test/CLASS/*.png. Runs over links want root, results-networks and
# results-spu PI_SPU_PYTHON as well (README).
BUDGET ?= 6000
CIFAR10 ?= cifar10
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check clean results results-networks results-budgets results-threads2 results-digits \
	results-methods results-scoring results-trained results-rehearsed results-unmasked \
	results-spu results-compared

run: $(VENV)/installed
	$(BIN)/pi-pipeline run --budget $(BUDGET) $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

RESULTS := benchmarks/results
CELLS := runs/methods/cells
comma := ,
TRAINED := ours-3000-seed0 ours-1500-seed0 ours_4_layers-1500-seed0 snl-3000-seed0 snl-1500-seed0

results: results-networks results-budgets results-threads2 results-digits results-methods results-scoring \
	results-trained results-rehearsed results-unmasked results-spu results-compared

# Every budget open at once, and preset on all links together: drift of the machine falls on all of them alike. Medians of
# 16 runs of preset, of 8 of CrypTen wander by 10 to 20 %, so they have more; Cheetah takes 80 s a run, and has one.
results-networks: $(VENV)/installed
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000,15000,30000,50000,100000,300000,400000,full \
		--backends preset,crypten,crypten-unmasked,spu-cheetah,spu-semi2k,plaintext --networks loopback,lan,wan \
		--runs 64 --runs-on wan=1 --runs-of preset@wan=8 --runs-of crypten=12 --runs-of crypten@loopback=24 \
		--runs-of crypten-unmasked=8 --runs-of crypten-unmasked@loopback=48 --runs-of spu-semi2k=3 \
		--runs-of spu-semi2k@loopback=6 --runs-of spu-cheetah=1 --no-warmup spu-cheetah --across-networks preset \
		--sweeps 1 --at-once 8 --images 1 \
		--output runs/networks
	$(BIN)/pi-pipeline report runs/networks
	cp runs/networks/results.json $(RESULTS)/resnet18-32x32-networks.json
	cp runs/networks/report.html $(RESULTS)/resnet18-32x32-networks.html

# preset is open on all links together: drift of the machine falls on the links alike as well. Medians of 8 runs of
# CrypTen are too rough to predict others within 10 %. The same on a machine without AVX-512 is kept as *-budgets-zen3.
results-budgets: $(VENV)/installed
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000,15000,30000,50000,100000,200000,350000,full \
		--backends preset,crypten,plaintext --networks loopback,lan,wan --runs 64 --runs-on wan=2 --runs-of crypten=12 \
		--across-networks preset --sweeps 1 --at-once 8 --images 1 --output runs/budgets
	$(BIN)/pi-pipeline report runs/budgets
	cp runs/budgets/results.json $(RESULTS)/resnet18-32x32-budgets.json
	cp runs/budgets/report.html $(RESULTS)/resnet18-32x32-budgets.html

results-threads2: $(VENV)/installed
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000 --backends preset,plaintext --party-threads 2 --runs 40 \
		--sweeps 1 --images 4 --output runs/threads2
	cp runs/threads2/results.json $(RESULTS)/resnet18-32x32-threads2.json

results-digits: $(VENV)/installed
	$(BIN)/pi-pipeline run --budget 6000
	cp runs/digits-resnet18-6000-seed0/results.json $(RESULTS)/digits-resnet18-6000-seed0.json

results-methods: $(VENV)/installed
	$(BIN)/pi-pipeline train --config configs/cifar10_resnet18_width16.yaml --data-dir $(CIFAR10) --data.limit 50000 \
		--baseline.epochs 12 --amp bf16 --threads 1 --run-dir runs/base
	$(BIN)/pi-pipeline compare --plan configs/compare/methods-cifar10-w16.yaml --data-dir $(CIFAR10) \
		--baseline runs/base/baseline.safetensors --output runs/methods
	cp runs/methods/cells.csv $(RESULTS)/cifar10-width16-methods.csv

results-scoring: results-methods
	$(BIN)/pi-pipeline compare --plan configs/compare/scoring-cifar10-w16.yaml --data-dir $(CIFAR10) \
		--baseline runs/base/baseline.safetensors --output runs/scoring
	cp runs/scoring/cells.csv $(RESULTS)/cifar10-width16-scoring.csv

results-trained: results-methods
	for cell in $(TRAINED); do $(BIN)/pi-pipeline export --run-dir $(CELLS)/$$cell || exit 1; done
	$(BIN)/pi-pipeline bench $(addprefix $(CELLS)/,$(TRAINED)) --budgets full,trained \
		--backends preset,crypten,plaintext --networks loopback,lan,wan --images 100 --runs 64 --runs-on wan=2 \
		--runs-of crypten=8 --across-networks preset --rehearse --sweeps 1 --output runs/trained
	$(BIN)/pi-pipeline report runs/trained
	cp runs/trained/results.json $(RESULTS)/cifar10-width16-trained.json
	cp runs/trained/report.html $(RESULTS)/cifar10-width16-trained.html

# For `estimate`: networks of other widths and image sizes; its constants were chosen before the last four were measured.
# Seven networks of the last, each with a rehearsal, want 22 GiB of memory; with less, some follow the others.
define rehearsed
	$(BIN)/pi-pipeline bench resnet18 $(3) --backends preset --networks loopback,lan,wan --images 2 --runs $(2) \
		--runs-on wan=6 --across-networks preset --rehearse --sweeps 1 --output runs/rehearsed-$(1)
	cp runs/rehearsed-$(1)/results.json $(RESULTS)/rehearsed-resnet18-$(1).json
endef

results-rehearsed: $(VENV)/installed
	$(call rehearsed,w24-32x32,32,--width 24 --budgets full$(comma)50000$(comma)8000)
	$(call rehearsed,w40-24x24,32,--width 40 --image-size 24 --budgets full$(comma)30000$(comma)5000)
	$(call rehearsed,w64-16x16,32,--width 64 --image-size 16 --budgets full$(comma)30000$(comma)3000)
	$(call rehearsed,w16-64x64,32,--width 16 --image-size 64 --budgets full$(comma)80000$(comma)10000)
	$(call rehearsed,w20-40x40,96,--width 20 --image-size 40 --budgets full$(comma)40000$(comma)6000)
	$(call rehearsed,w56-24x24,96,--width 56 --image-size 24 --budgets full$(comma)40000$(comma)4000)
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000,15000,30000,50000,100000,300000,full --backends preset \
		--networks loopback,lan,wan --runs 48 --runs-on wan=2 --across-networks preset --rehearse --sweeps 1 --at-once 7 \
		--images 1 --output runs/rehearsed-w64-32x32
	$(BIN)/pi-pipeline report runs/rehearsed-w64-32x32
	cp runs/rehearsed-w64-32x32/results.json $(RESULTS)/rehearsed-resnet18-w64-32x32.json
	cp runs/rehearsed-w64-32x32/report.html $(RESULTS)/rehearsed-resnet18-w64-32x32.html

# On a machine without AVX-512, like *-budgets-zen3 and *-spu: with these three each backend has a run there.
results-unmasked: $(VENV)/installed
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000,15000,30000,50000,100000,full --backends crypten-unmasked \
		--networks loopback,lan,wan --images 2 --runs 8 --sweeps 1 --at-once 6 --output runs/unmasked
	$(BIN)/pi-pipeline report runs/unmasked
	cp runs/unmasked/results.json $(RESULTS)/resnet18-32x32-unmasked.json
	cp runs/unmasked/report.html $(RESULTS)/resnet18-32x32-unmasked.html

results-spu: $(VENV)/installed
	$(PI_SPU_PYTHON) benchmarks/spu_moves.py
	$(BIN)/pi-pipeline bench resnet18 --budgets 6000,15000,30000,50000,100000,200000,350000,full \
		--backends spu-semi2k,spu-cheetah --networks loopback,lan,wan --runs 3 --runs-of spu-cheetah=1 --sweeps 1 \
		--at-once 8 --images 1 --output runs/spu
	$(BIN)/pi-pipeline report runs/spu
	cp runs/spu/results.json $(RESULTS)/resnet18-32x32-spu.json
	cp runs/spu/report.html $(RESULTS)/resnet18-32x32-spu.html

# The runs of fewer backends and more counts against the run with all peers.
results-compared: $(VENV)/installed
	$(BIN)/pi-pipeline report $(RESULTS)/resnet18-32x32-networks.json $(RESULTS)/resnet18-32x32-budgets-zen3.json \
		$(RESULTS)/resnet18-32x32-spu.json $(RESULTS)/resnet18-32x32-unmasked.json --output runs/compared.html
	cp runs/compared.html $(RESULTS)/resnet18-32x32-compared.html

# A half-made environment has no mark and is made again.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
