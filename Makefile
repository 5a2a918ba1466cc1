# Two commands for a fresh machine with Python 3.11 or newer and make:
#
#     make demo PROMPT="a red apple, noto style"
#     make test
#
# Both make a virtual environment (.venv) and install the package into it, once: a later call
# installs again only when setup.cfg, pyproject.toml or constraints.txt has changed.

PYTHON      ?= python3
VENV        ?= .venv
PROMPT      ?= a red apple, noto style
FLAGS       ?= --guidance 3
PYTEST_ARGS ?=
TORCH_INDEX ?=
EXTRAS      ?= dev
JOBS        ?= 2

PYTHON_IN_VENV := $(VENV)/bin/python
INSTALL := $(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-browser lint format wheel clean

help:
	@echo 'make demo PROMPT="..."   draw a 1024 x 1024 picture as demo.png (FLAGS="--seed 7" for more)'
	@echo 'make test                pass the tests (PYTEST_ARGS="tests/diffusion -x" for some; JOBS=8)'
	@echo 'make test VENV=.venv-quant EXTRAS=dev,quant   the same, quantised loading by torchao included'
	@echo 'make test-slow           pass the long tests, an hour at most'
	@echo 'make test-browser        drive the page of unclip-serve in Chromium, a few minutes'
	@echo 'make lint                check style and format'
	@echo 'make format              format the code'
	@echo 'make wheel               build dist/unclip-*.whl'
	@echo 'make clean               remove the environment and what was built'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python that makes the environment, VENV=folder its place,'
	@echo 'TORCH_INDEX=https://download.pytorch.org/whl/cpu the small PyTorch build without CUDA.'

# --- the environment -------------------------------------------------------------------------

$(VENV)/.made:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  version=$$("$(PYTHON)" --version 2>&1) || version="not found"; \
	  echo "unclip needs Python 3.11 or newer, but $(PYTHON) is $$version;" \
	    "name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON_IN_VENV)" -m pip --version >/dev/null 2>&1 || { \
	  echo "making the environment in $(VENV)"; \
	  "$(PYTHON)" -m venv "$(VENV)" || { \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install the" \
	      "package python3-venv" >&2; \
	    exit 1; }; }
	@touch "$@"

# torch goes first and alone, so that nothing pulls in another build of it.
$(VENV)/.torch: $(VENV)/.made constraints.txt
	@torch=$$(grep '^torch==' constraints.txt); \
	echo "installing $$torch (the first time takes a few minutes)"; \
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$torch"
	@touch "$@"

$(VENV)/.installed: $(VENV)/.torch setup.cfg pyproject.toml
	@echo "installing unclip"
	@$(INSTALL) --editable .
	@touch "$@"

$(VENV)/.installed-dev: $(VENV)/.torch setup.cfg pyproject.toml
	@echo "installing unclip and what its tests need"
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch "$(VENV)/.installed" "$@"

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	@$(INSTALL) --editable '.[browser]'
	@touch "$@"

# --- what one does with it -------------------------------------------------------------------

# The prompt goes through the environment, so that no shell reads what stands in it.
demo: export UNCLIP_DEMO_PROMPT = $(value PROMPT)
demo: $(VENV)/.installed
	@picture=demo.png; number=2; \
	while [ -e "$$picture" ]; do picture=demo-$$number.png; number=$$((number + 1)); done; \
	"$(VENV)/bin/unclip-sample" --prompt "$$UNCLIP_DEMO_PROMPT" --size 1024 $(FLAGS) \
	  --output "$$picture" && \
	echo "the picture is in $$PWD/$$picture"

test: $(VENV)/.installed-dev
	@$(PYTHON_IN_VENV) -P -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev
	@$(PYTHON_IN_VENV) -P -m pytest -m slow $(PYTEST_ARGS)

# SCREENSHOTS=docs leaves pictures of the page there, drawn by the embedded model.
test-browser: $(VENV)/.installed-browser
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get -qq update && apt-get -qq install -y chromium chromium-driver; \
	  else \
	    echo "the page is tried in Chromium: install it and its driver" \
	      "(apt-get install chromium chromium-driver)" >&2; \
	    exit 1; \
	  fi; }
	@$(PYTHON_IN_VENV) -P -m pytest -m browser $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .

format: $(VENV)/.installed-dev
	@$(PYTHON_IN_VENV) -m ruff check --fix .
	@$(PYTHON_IN_VENV) -m ruff format .

# build/ goes first: setuptools would put stale files from it into the wheel.
wheel: $(VENV)/.installed-dev
	@rm -rf build dist
	@$(PYTHON_IN_VENV) -P -m build --wheel --outdir dist . >"$(VENV)/wheel.log" 2>&1 || { \
	  cat "$(VENV)/wheel.log" >&2; exit 1; }
	@rm -rf build
	@ls dist/*.whl

clean:
	rm -rf "$(VENV)" build dist .pytest_cache .ruff_cache *.egg-info
