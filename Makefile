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

.PHONY: serve export test test-serve test-export test-clients test-slow test-faults test-ray
.PHONY: bench bench-quick bench-http bench-stages check lock clean

serve: .venv/.installed artifacts/.exported  ## export what can be had, then serve in the foreground
	exec .venv/bin/embedserve serve --host $(HOST) --port $(PORT) --provider $(PROVIDER) --skip-missing

export: .venv-export/.installed  ## export every model of models.toml whose files can be had
	.venv-export/bin/python -m export
	@touch artifacts/.exported

test: test-serve test-export test-clients  ## the whole suite, on the real process and model

test-serve: .venv/.installed .venv-dev/.installed artifacts/.exported
	.venv-dev/bin/python -m pytest -m "not slow"

test-export: .venv-export/.installed
	.venv-export/bin/python -m pytest --confcutdir=tests/export -m "not slow" tests/export
	$(EXPORT_FAULTS) -m "not slow"

# Each operation on files fails once, thirty kills, disks of every size: six minutes.
test-faults: .venv-export/.installed
	$(EXPORT_FAULTS)

# The clients' own warnings are theirs.
test-clients: .venv/.installed .venv-clients/.installed artifacts/.exported
	.venv-clients/bin/python -m pytest -W default --confcutdir=tests/clients tests/clients

# Two nodes as processes of this machine.
test-ray: .venv/.installed .venv-ray/.installed artifacts/.exported
	.venv-ray/bin/python -m pytest -W default --confcutdir=tests/ray tests/ray

# At the models' real sizes: half an hour.
test-slow: .venv/.installed .venv-dev/.installed .venv-export/.installed .venv-reference/.installed
	NOMIC_REFERENCE_PYTHON=$(CURDIR)/.venv-reference/bin/python \
	  .venv-export/bin/python -m pytest --confcutdir=tests/export -m slow --timeout 3600 tests/export
	.venv-dev/bin/python -m pytest -m slow --timeout 3600 --ignore=tests/faults

# Needs wrk (Debian's package) and an idle machine: every peer in turn, 25 minutes.
bench: .venv/.installed .venv-dev/.installed .venv-bench/.installed artifacts/.exported  ## all peers
	$(BENCH)

# One short round of embedserve and raw onnxruntime: nothing with torch, two minutes.
bench-quick: .venv/.installed .venv-dev/.installed artifacts/.exported
	$(BENCH) --quick

bench-http: .venv-dev/.installed  ## what the HTTP layer costs
	$(BENCH).http_overhead

bench-stages: .venv-dev/.installed artifacts/.exported  ## what each stage of a request costs
	$(BENCH).stages

check: .venv-dev/.installed  ## format, lint and types
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/ruff check .
	.venv-dev/bin/mypy

lock:  ## write the lock files anew (needs uv)
	for name in serve serve-cuda dev clients ray; do \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate requirements/$$name.in -o requirements/$$name.txt || exit 1; \
	done
	for name in export reference; do \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	    requirements/$$name.in | grep -vE '^(torch|triton|nvidia-|cuda-)' > requirements/$$name.txt; \
	done
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate requirements/bench.in \
	  | awk '/^[a-z]/ {kept = !/^(torch|triton|nvidia-|cuda-)/} kept' > requirements/bench.txt

clean:
	rm -rf .venv .venv-dev .venv-ray .venv-export .venv-clients .venv-reference .venv-bench artifacts build embedserve.egg-info

.venv/.installed: $(SERVE_LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --require-hashes -r $(SERVE_LOCK)
	.venv/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv-dev/.installed: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/python $(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	.venv-dev/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv-ray/.installed: requirements/ray.txt pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP_INSTALL) --require-hashes -r requirements/ray.txt
	.venv-ray/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

.venv-clients/.installed: requirements/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python $(PIP_INSTALL) --require-hashes -r requirements/clients.txt
	@touch $@

# transformers 5 beside the export environment's 4: the reference of nomic_bert.
.venv-reference/.installed: requirements/reference.txt requirements/export.in
	$(PYTHON) -m venv .venv-reference
	.venv-reference/bin/python $(PIP_TORCH)
	.venv-reference/bin/python $(PIP_INSTALL) -r requirements/reference.txt
	@touch $@

# torch alone from its index, so that nothing else can come from there; then the rest, pinned.
.venv-export/.installed: requirements/export.txt requirements/export.in pyproject.toml
	$(PYTHON) -m venv .venv-export
	.venv-export/bin/python $(PIP_TORCH)
	.venv-export/bin/python $(PIP_INSTALL) -r requirements/export.txt
	.venv-export/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

# The lock is whole but for torch and what its CUDA build asks for: nothing else may be resolved.
.venv-bench/.installed: requirements/bench.txt requirements/bench.in
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP_TORCH)
	.venv-bench/bin/python $(PIP_INSTALL) --no-deps --require-hashes -r requirements/bench.txt
	@touch $@

artifacts/.exported: models.toml | .venv-export/.installed
	$(MAKE) export
