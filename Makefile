# The commands a person has to remember: serve, export, test, check. Needs Python 3.11+ and make.

HOST ?= 127.0.0.1
PORT ?= 5000
PYTHON ?= python3
# cpu or cuda: which build of onnxruntime .venv gets, and which provider serves.
PROVIDER ?= cpu
# Where torch comes from (export only). The package index's own torch for Linux is a CUDA build of
# several GB; this index has CPU builds for every platform. Empty: pip's own configuration.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = $(shell grep '^torch==' requirements/export.in)
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
PIP_TORCH = $(PIP_INSTALL) --no-deps --retries 1 --timeout 15 \
  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
BENCH = .venv-dev/bin/python -m tests.bench
EXPORT_FAULTS = .venv-export/bin/python -m pytest --confcutdir=tests/faults tests/faults/test_export_faults.py
SERVE_LOCK = requirements/serve$(if $(filter cuda,$(PROVIDER)),-cuda).txt

# The image: docs/image.md. The first of these that works, unless one is named.
CONTAINER ?= $(shell for one in podman docker buildah; do \
  $$one info >/dev/null 2>&1 && echo $$one && break; done)
IMAGE ?= embedserve
# The image to build from; empty: the Containerfile's own.
BASE ?=
DEBIAN_MIRROR ?=
# More for the build (and for the export tool's run): --volume, --build-arg, --network, ...
BUILD_FLAGS ?=
RUN_FLAGS ?=
REVISION ?= $(shell git rev-parse HEAD)
image image-export image-base image-reproducible sbom: \
  export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
BUILD_IMAGE = $(or $(CONTAINER),$(error no podman, docker or buildah works here)) build \
  $(if $(findstring docker,$(CONTAINER)),,--format docker --timestamp $(SOURCE_DATE_EPOCH))
BUILD_EMBEDSERVE = $(BUILD_IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) \
  --build-arg PROVIDER=$(PROVIDER) --build-arg TORCH_INDEX=$(TORCH_INDEX) \
  --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) --build-arg REVISION=$(REVISION) \
  --build-arg VERSION=$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' embedserve/__init__.py) \
  --build-arg CREATED=$(shell date --utc --date @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ) \
  $(BUILD_FLAGS)
IMAGE_TEST = CONTAINER="$(CONTAINER)" IMAGE=$(IMAGE) RUN_FLAGS="$(RUN_FLAGS)" \
  .venv-dev/bin/python -m pytest -s --confcutdir=tests/image

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(MAKEFILE_LIST))

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
	  | awk -F '|' '{printf "%-20s %s\n", $$1, $$2}'

serve: .venv/.installed artifacts/.exported  ## export the models whose files are available, then serve in the foreground; HOST, PORT, PROVIDER
	exec .venv/bin/embedserve serve --host $(HOST) --port $(PORT) --provider $(PROVIDER) --skip-missing

export: .venv-export/.installed  ## export every model of models.toml whose files are available
	.venv-export/bin/python -m export
	@touch artifacts/.exported

test: test-serve test-export test-clients  ## run the whole suite, with real processes and a real model: 35 minutes

test-serve: .venv/.installed .venv-otel/.installed .venv-dev/.installed artifacts/.exported  ## run the server's tests: 20 minutes
	.venv-dev/bin/python -m pytest -m "not slow"

test-export: .venv-export/.installed  ## run the export tool's tests: 15 minutes
	.venv-export/bin/python -m pytest --confcutdir=tests/export -m "not slow" tests/export
	$(EXPORT_FAULTS) -m "not slow"

# Every shape of a well-known model and its re-save: twenty minutes; then docs/models.md.
test-models: .venv-export/.installed .venv-dev/.installed  ## test the shapes of well-known models, then rewrite docs/models.md's tables: 20 minutes
	.venv-export/bin/python -m tests.models
	.venv-dev/bin/python -m tests.models.table

# The server's, under load and with the soak: an idle machine. Then the export's: each operation on
# files fails once, thirty kills, disks of every size: six minutes.
test-faults: .venv/.installed .venv-dev/.installed .venv-export/.installed artifacts/.exported  ## test every promise under load, attack and faults; needs an idle machine
	.venv-dev/bin/python -m pytest --timeout 3600 tests/faults tests/attack
	$(EXPORT_FAULTS)

# Its seed is printed; build/fuzz keeps the inputs whose answers were new, and those that failed.
SECONDS ?= 1800
fuzz: .venv/.installed .venv-dev/.installed artifacts/.exported  ## send random HTTP and JSON to a server and watch it: half an hour; SECONDS, SEED
	.venv-dev/bin/python -m tests.attack.fuzz $(SECONDS) $(SEED)

# What a machine with a GPU needs for tests/gpu/run.sh: parts of 56 MB (docs/operating.md, CUDA).
gpu-parts: .venv-export/.installed  ## pack what a machine with a GPU needs into build/gpu/part-NN
	.venv-export/bin/python -m tests.gpu.parts

# The clients' own warnings are theirs.
test-clients: .venv/.installed .venv-clients/.installed artifacts/.exported  ## test other projects' clients against the real server
	.venv-clients/bin/python -m pytest -W default --confcutdir=tests/clients tests/clients

# Two nodes as processes of this machine.
test-ray: .venv/.installed .venv-ray/.installed artifacts/.exported  ## test Ray Serve and embed --ray, on two nodes of this machine
	.venv-ray/bin/python -m pytest -W default --confcutdir=tests/ray tests/ray

# At the models' real sizes: half an hour.
test-slow: .venv/.installed .venv-dev/.installed .venv-export/.installed  ## test models at their real sizes: half an hour
	.venv-export/bin/python -m pytest --confcutdir=tests/export -m slow --timeout 3600 tests/export
	.venv-dev/bin/python -m pytest -m slow --timeout 3600 --ignore=tests/faults

image:  ## build the server's image, with podman, docker or buildah
	$(BUILD_EMBEDSERVE) --target serve --tag $(IMAGE) -f Containerfile .

image-export:  ## build the export tool's image
	$(BUILD_EMBEDSERVE) --target export --tag $(IMAGE)-export -f Containerfile .

# Needs mmdebstrap (Debian's package). Then: make image BASE=embedserve-base
image-base:  ## make Debian 12 with Python as an image, without a registry
	mkdir -p build/base
	mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
	  bookworm build/base/base.tar $(DEBIAN_MIRROR)
	$(BUILD_IMAGE) --tag $(IMAGE)-base -f deploy/Containerfile.base build/base

# Read-only, without capabilities, network and HOME; with buildah runc is needed, too.
image-test: image image-export sbom .venv-dev/.installed artifacts/.exported  ## run the images and test them
	$(IMAGE_TEST) --timeout 1800 tests/image --ignore=tests/image/test_reproducible.py

image-reproducible: image .venv-dev/.installed  ## build the image twice and compare; not with docker
	$(MAKE) image IMAGE=$(IMAGE)-again BUILD_FLAGS='--no-cache $(BUILD_FLAGS)'
	$(IMAGE_TEST) tests/image/test_reproducible.py

sbom:  ## list what is in the image, as CycloneDX: build/sbom.cdx.json
	$(BUILD_EMBEDSERVE) --target sbom --tag $(IMAGE)-sbom --output type=local,dest=build -f Containerfile .

# Needs wrk (Debian's package) and an idle machine: every peer in turn, 25 minutes. With
# BENCH_FLAGS=--quick it is one round of two minutes, and nothing with torch.
bench: .venv/.installed .venv-dev/.installed $(if $(BENCH_FLAGS),,.venv-bench/.installed) artifacts/.exported  ## compare embedserve with its peers: 25 minutes; BENCH_FLAGS=--quick: one round
	$(BENCH) $(BENCH_FLAGS)

bench-http: .venv-dev/.installed  ## measure what the HTTP layer costs
	$(BENCH).http_overhead

docs: .venv-dev/.installed  ## write the tables of docs/ that are made from the code
	.venv-dev/bin/python -m tests.make_docs

check: .venv-dev/.installed  ## check format, lint and types
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/ruff check .
	.venv-dev/bin/mypy

lock:  ## rewrite the lock files; needs uv
	for name in serve serve-cuda serve-otel dev clients build sbom ray; do \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate requirements/$$name.in -o requirements/$$name.txt || exit 1; \
	done
	for name in export bench; do \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate requirements/$$name.in \
	    | awk '/^[a-z]/ {kept = !/^(torch|triton|nvidia-|cuda-)/} kept' > requirements/$$name.txt; \
	done
	uv pip compile --quiet --upgrade --no-deps --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate requirements/optimum.in -o requirements/optimum.txt

clean:  ## remove environments, artifacts and builds
	rm -rf .venv .venv-* artifacts build embedserve.egg-info

define environment
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --require-hashes -r $<
	$(@D)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@
endef

.venv/.installed: $(SERVE_LOCK) pyproject.toml
	$(environment)

.venv-otel/.installed: requirements/serve-otel.txt pyproject.toml
	$(environment)

.venv-%/.installed: requirements/%.txt pyproject.toml
	$(environment)

# torch alone from its index, so that nothing else can come from there; then the rest, which is whole
# but for torch and what its CUDA build asks for: nothing else may be resolved. optimum's own versions
# go into a folder beside the packages (export/steps.py): torch is there once.
.venv-export/.installed: requirements/export.txt requirements/export.in requirements/optimum.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-export
	.venv-export/bin/python $(PIP_TORCH)
	.venv-export/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/export.txt
	.venv-export/bin/python $(PIP_INSTALL) --no-deps --require-hashes --target .venv-export/optimum \
	  -r requirements/optimum.txt
	.venv-export/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

# As .venv-export.
.venv-bench/.installed: requirements/bench.txt requirements/bench.in
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP_TORCH)
	.venv-bench/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/bench.txt
	@touch $@

artifacts/.exported: models.toml | .venv-export/.installed
	$(MAKE) export
