# Everything here works with Python 3.11 to 3.14 and make alone. ARGS="…" is passed on.
MAKEFLAGS += --no-print-directory
# Hundreds of processes are started by the tests: none compiles again what another has compiled.
unexport PYTHONDONTWRITEBYTECODE
# Each has servers of its own, and runs whole files. Two for each of two cores: half of what tests do is to wait.
TEST_PROCESSES ?= 4
SUITE = .venv/bin/python -m tests.suite -q --processes $(TEST_PROCESSES)
.PHONY: init run test servers servers-stop verify versions nightly check compile wheels run-compiled bench bench-scale docs faults world prices lock clean

init: ## Five questions, then everything on this machine with a team, its key and its budget
	@.ci/environment requirements.lock
	@exec .venv/bin/tollkeeper init $(ARGS)

run: ## Start everything on this machine
	@.ci/environment requirements.lock
	@exec .venv/bin/tollkeeper up $(ARGS)

test: ## Every check, and the tests that each change is held to
	@.ci/environment requirements-dev.lock
	@$(MAKE) check
	$(SUITE) --tier quick --dearest 2 $(ARGS)

servers: ## A migrated PostgreSQL that stays, for runs of single test files; `make servers-stop` ends it
	@.ci/environment requirements-dev.lock
	@.venv/bin/python -m tests.servers start

servers-stop:
	@.venv/bin/python -m tests.servers stop

verify: ## What a release is held to besides: faults, the compiled hot path, image, upgrade, SDKs, archives
	@.ci/environment requirements-dev.lock
	$(SUITE) --tier verify --dearest 5 $(ARGS)

versions: ## What tests say of each version of PostgreSQL; fetches those that are not here
	@.ci/environment requirements-dev.lock
	.venv/bin/python -m pytest -q -m versions tests/features/backup/test_versions.py

nightly: ## Both with all examples, drawn; real faults, other versions of servers; SEED=… plays a night again
	@.ci/environment requirements-dev.lock
	SEED=$(SEED) $(SUITE) --tier night $(ARGS)

check: ## Style, types, layers, Lua and the rules of the house
	@.ci/environment requirements-dev.lock
	@.venv/bin/python -m tests.check

compile: ## The hot path as extension modules in build/compiled; needs a C compiler and Python.h
	@.ci/environment requirements-dev.lock
	@.venv/bin/python deploy/compile.py build/compiled

wheels: ## What `pip install` takes, in build/wheels: a pure wheel, and a compiled one where that can be built
	@.ci/environment requirements-dev.lock
	@.venv/bin/python deploy/wheels.py build/wheels

run-compiled: compile ## `make run` with the compiled hot path
	@PYTHONPATH="$(CURDIR)/build/compiled" exec .venv/bin/python -P -m gateway up $(ARGS)

# Where the measurements are published; PAGE=build/… writes them elsewhere.
PAGE ?= docs/internals/figures.md

bench: ## Beside nginx, Envoy and nginx + Lua + Redis in twelve minutes: a table and a picture in docs/internals/figures.md
	@.ci/environment requirements-dev.lock
	@exec .venv/bin/python -m tests.bench.run --page $(PAGE) $(ARGS)

bench-scale: ## How cost, memory and times grow with tenants, keys, users and servers; ARGS="--most 10000"
	@.ci/environment requirements-dev.lock
	@exec .venv/bin/python -m tests.bench.scale --page $(PAGE) $(ARGS)

docs: ## The site of docs/ in build/site, its reference made from the code; ARGS=serve shows it on port 8000
	@.ci/environment requirements-dev.lock
	@.venv/bin/python deploy/reference.py
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs $(or $(ARGS),build)

faults: ## The matrix of faults in its long form, resumable; SEED=…, ARGS="--rows NAME,… --fresh --list"
	@.ci/environment requirements-dev.lock
	@SEED="$(SEED)" exec .venv/bin/python -m tests.faults.run $(ARGS)

world: ## Real engines, clients and other programs around Tollkeeper, and the pages on them; ARGS="--programs NAME,… --fresh --newest --record --list"
	@.ci/environment requirements-dev.lock
	@exec .venv/bin/python -m tests.world.run $(ARGS)

prices: ## The bundled price list, from the locked genai-prices, and its differences to a second table
	@.ci/environment requirements-dev.lock
	@.venv/bin/python -m deploy.bundled_prices

COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links
# What a lock leaves out, as options: packages that other locks have.
LEAVE_OUT = sed -n 's/^\([a-z][^=]*\)==.*/--no-emit-package \1/p'
# Those of which others are made: deploy/extras/.
EXTRAS = archive aws documents google oidc rls stripe tokenizer up websockets

lock: ## Resolve what pyproject.toml asks for, keeping versions; UPGRADE=--upgrade takes new ones
	@.ci/environment requirements-dev.lock
	$(COMPILE) $(UPGRADE) pyproject.toml --extra up -o requirements.lock
	$(COMPILE) $(UPGRADE) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) pyproject.toml -c requirements.lock -o deploy/requirements.lock
	for extra in $(EXTRAS); do $(COMPILE) $(UPGRADE) pyproject.toml --extra $$extra -c requirements-dev.lock \
		$$($(LEAVE_OUT) deploy/requirements.lock) -o deploy/extras/$$extra.lock || exit 1; done
	sed -i '/^# The following packages were excluded/,$$d' deploy/requirements.lock $(EXTRAS:%=deploy/extras/%.lock)
	printf 'mypy\npip\nsetuptools\n' | $(COMPILE) $(UPGRADE) - -c requirements-dev.lock -o deploy/requirements-build.lock
	printf 'cohere\nlangchain-anthropic\nlangchain-openai\nlitellm\nmistralai\n' | $(COMPILE) $(UPGRADE) - -o tests/journey/clients.lock

clean: ## Remove the environment; data directories stay
	rm -rf .venv *.egg-info build
