# All targets need python3 (3.11 or newer, with venv) and make. Other packages are installed into .venv.
#
# The torch build: by default pip installs the registry's build, which on Linux includes gigabytes of CUDA. On a Raspberry
# Pi, and on any machine without a GPU, use PyTorch's CPU wheels instead:
#     make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
# docs/install.md has the details, and names the torch version that crashes on a Pi 4.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed

DEMO_OUT ?= demo-out
DEMO_FLAGS ?=
PYTEST_FLAGS ?=
# Three tests at a time: most of them start programs and wait for them. Two leave a core of two idle for a tenth of the time.
TEST_WORKERS ?= 3
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 3
SOAK_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint fuzz soak bench proto clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(STAMP) ## create .venv and install EdgeKD with its tools, once per pyproject.toml

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer, or use make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than Python 3.11; use make PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" torch torchvision)
	$(BIN)/python -m pip install --editable '.[dev]'
	@$(BIN)/python -c 'import torchvision' \
	    || { echo "torch and torchvision do not fit together: install both from one index, see docs/install.md" >&2; exit 1; }
	touch $@

demo: $(STAMP) ## compare the policies on this machine (local teacher, digits): prints the table, writes demo-out/
	$(BIN)/edge-student compare --out $(DEMO_OUT) $(DEMO_FLAGS)

test: lint ## run lint, then every test
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist worksteal $(PYTEST_FLAGS)

lint: $(STAMP) ## check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(STAMP) ## feed invalid data to the decoders of both ends for FUZZ_SECONDS; findings are written to build/fuzz/
	@if [ "$$(uname -m)" = x86_64 ]; then $(BIN)/python tests/fuzzing/fuzz_decoders.py $(FUZZ_SECONDS) build/fuzz; \
	    else echo "fuzzing skipped: atheris has wheels for x86_64 only"; fi

soak: $(STAMP) ## inject faults for SOAK_MINUTES; check that memory, descriptors and threads do not grow and the result is unchanged
	$(BIN)/python tests/faults/soak.py --minutes $(SOAK_MINUTES) $(SOAK_FLAGS)

bench: $(STAMP) ## run every benchmark in sequence, for hours; keep the machine idle
	@set -e; for benchmark in benchmarks/*.py; do \
	    case "$$benchmark" in */plain_script.py) continue;; esac; \
	    echo "== $$benchmark"; $(BIN)/python "$$benchmark"; \
	done

proto: $(STAMP) ## regenerate the stubs from proto/edgekd/v1/teacher.proto
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto \
	    proto/edgekd/v1/teacher.proto

clean: ## remove caches, build output and the demo's output; keep .venv and runs/
	rm -rf build dist demo-out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
