.DEFAULT_GOAL := help
BIN := .venv/bin

# Programs under test start faster from compiled modules, and so does the agent.
unexport PYTHONDONTWRITEBYTECODE

# The tests in four processes, and those that failed once more: what is red then is not due to a crowded machine.
define tests
PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder $(1) || { \
	echo; echo "the tests that failed, once more and alone:"; \
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(1); }
endef

.PHONY: help setup run test test-all soak test-kernels test-windows test-packages packages lint docs bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Set up the virtual environment, system packages (as root) and BPF objects
	@./packaging/setup.sh

run: setup ## Run the agent with its embedded collector: Zeek logs in ./logs, state in ./state (more flags: ARGS="…")
	@./packaging/run.sh $(ARGS)

test: setup ## Run the tests but the long ones, in minutes (a selection, with its long ones: ARGS="-k sockets")
	@$(call tests,$(or $(ARGS),--quick))

test-all: setup ## Run all tests except the soaks, as CI does
	@$(call tests,$(ARGS))

soak: setup ## Run the soaks: long runs, floods and rates (a selection: ARGS="-k outage")
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m pytest -m soak $(ARGS)

test-kernels: setup ## Load the BPF objects in Debian's kernels under QEMU (others: ARGS="linux-image-…")
	@$(BIN)/python tests/kernels/run.py $(ARGS)

test-windows: setup ## Run the tests of shared code with Windows' Python under Wine (as root if Wine is missing; one file: ARGS=…)
	@$(BIN)/python tests/windows/run.py $(ARGS)

packages: setup ## Build a .deb per release of Debian and an .rpm, in dist/ (as root; one release: ARGS="--release bookworm")
	@$(BIN)/python packaging/packages.py $(ARGS)

test-packages: setup ## Build packages; install, upgrade and purge them in fresh roots of Debian (as root)
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m pytest -m packages $(ARGS)

lint: setup ## Check style, types, generated documentation and scripts, and NOTICE
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file packaging/types/darwin.toml
	@$(BIN)/mypy --config-file packaging/types/win32.toml
	@$(BIN)/python -m zeek_agent.reference --check
	@$(BIN)/python zeek/generate.py --check
	@$(BIN)/python zeek/reference.py --check
	@$(BIN)/python packaging/check_notice.py

docs: setup ## Regenerate docs/ and the Zeek package's scripts
	@$(BIN)/python -m zeek_agent.reference
	@$(BIN)/python zeek/generate.py
	@$(BIN)/python zeek/reference.py

bench: setup ## Run the benchmarks; each prints a table
	@for benchmark in benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done

lock: setup ## Update the locked dependencies
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --all-extras --group dev --output-file requirements.lock pyproject.toml

clean: ## Remove everything that setup and builds created
	rm -rf .venv dist build .mypy_cache .pytest_cache .ruff_cache
	find src -name '*.bpf.o' -delete
