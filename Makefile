# Everything here needs python3 (3.11 or newer, with venv) and make; the rest is installed into .venv.
#
# Which torch: a plain install takes the registry's default build, which on Linux brings CUDA along, gigabytes of it. On a Raspberry
# Pi, and on any machine without a GPU, take PyTorch's own CPU wheels instead:
#     make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
# docs/install.md has the details, and the torch version that crashes on a Pi 4.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed

DEMO_OUT ?= demo-out
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
# Two tests at a time, on any machine: most of them start programs and wait for them. A third worker would find no core on a box with two.
TEST_WORKERS ?= 2
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 3
SOAK_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint fuzz soak bench proto clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(STAMP) ## create .venv and install EdgeKD and its tools there, once per pyproject.toml

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than Python 3.11; say make PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" torch torchvision)
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

demo: $(STAMP) ## compare the policies on this machine (embedded teacher, digits): prints the table, writes demo-out/
	$(BIN)/edge-student compare --out $(DEMO_OUT) $(DEMO_FLAGS)

test: lint ## lint, then every test
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal $(PYTEST_FLAGS)

lint: $(STAMP) ## style, types and the walls between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(STAMP) ## feed the decoders of both ends what no peer sends, for FUZZ_SECONDS; a finding is kept in build/fuzz/
	@if [ "$$(uname -m)" = x86_64 ]; then $(BIN)/python tests/fuzzing/fuzz_decoders.py $(FUZZ_SECONDS) build/fuzz; \
	    else echo "atheris has wheels for x86_64 only: nothing was fuzzed"; fi

soak: $(STAMP) ## SOAK_MINUTES of faults: memory, descriptors and threads must stay flat, and the result the same
	$(BIN)/python tests/faults/soak.py --minutes $(SOAK_MINUTES) $(SOAK_FLAGS)

bench: $(STAMP) ## run every benchmark, one after another; keep the machine quiet meanwhile
	@set -e; for benchmark in benchmarks/*.py; do \
	    test -e "$$benchmark" || { echo "no benchmarks yet" >&2; exit 1; }; \
	    echo "== $$benchmark"; $(BIN)/python "$$benchmark"; \
	done

proto: $(STAMP) ## regenerate the stubs from proto/edgekd/v1/teacher.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto \
	    proto/edgekd/v1/teacher.proto

clean: ## remove caches, build output and the demo's; .venv and runs/ stay
	rm -rf build dist demo-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
