.PHONY: up down clean test torture flat cluster scale lint-infra test-privilege test-compose demo bench test-image

up: ## Install and start Redis, TimescaleDB and Chroma here (STACK=docker: with Docker)
	@infra/local/stack up

down: ## Stop them; the data stay
	@infra/local/stack down

clean: ## Stop them and remove them with their data
	@infra/local/stack clean

test: ## All tests: unit, property and end-to-end, against servers that the tests start and end themselves
	@echo "Servers for the tests: installing what is missing into .stack (a minute the first time) …"
	@infra/local/stack install
	@echo "Building the program and its tests …"
	@cargo test --locked --no-run
	@echo "Running them; the end-to-end tests take some minutes …"
	@cargo test --locked

flat: ## Ten minutes of constant load: Redis's and the worker's memory must not grow (AEGIS_FLAT_SECONDS=N)
	@infra/local/stack install
	@echo "Building the program as it is released, and the test …"
	@cargo build --locked --release
	@cargo test --locked --no-run --test behaviour
	@AEGIS_BIN=$(CURDIR)/target/release/aegis-ingest AEGIS_FLAT_SECONDS=$${AEGIS_FLAT_SECONDS:-600} \
		cargo test --locked --test behaviour -- --exact --nocapture trimming::flat::memory_is_flat_under_constant_load

lint-infra: ## Compose file, image, rules, dashboard, chart, licences: linted, rendered, unit-tested
	@tests/deploy/lint.sh

test-privilege: ## The whole path with the least rights: roles of infra/timescale, users of infra/redis
	@infra/local/stack install
	@cargo build --locked
	@tests/deploy/least_privilege.sh target/debug/aegis-ingest

test-image: ## docker build, with BuildKit and without, and what is in the image (needs a Docker engine; RELEASE=1: optimised, longer)
	@tests/deploy/image.sh && tests/deploy/images/remove.sh

test-compose: ## docker-compose.yml as it is, with images that stand in where no registry is (needs a Docker engine)
	@infra/local/stack install
	@cargo build --locked
	@tests/deploy/compose.sh target/debug/aegis-ingest && tests/deploy/images/remove.sh

torture: ## Ten minutes, 200 faults and more, then every event is looked for (AEGIS_TORTURE_SEED=N: a run again; AEGIS_TORTURE_SECONDS=N)
	@infra/local/stack install
	@echo "Building the program as it is released, and the test …"
	@cargo build --locked --release
	@cargo test --locked --no-run --test behaviour
	@AEGIS_BIN=$(CURDIR)/target/release/aegis-ingest AEGIS_TORTURE_SECONDS=$${AEGIS_TORTURE_SECONDS:-540} \
		cargo test --locked --test behaviour -- --exact --nocapture torture::every_event_survives_the_faults

cluster: ## A million events through a cluster of six, four workers, a primary killed and slots moved (AEGIS_CLUSTER_EVENTS=N)
	@infra/local/stack install
	@echo "Building the program as it is released, and the test …"
	@cargo build --locked --release
	@cargo test --locked --no-run --test behaviour
	@AEGIS_BIN=$(CURDIR)/target/release/aegis-ingest AEGIS_CLUSTER_EVENTS=$${AEGIS_CLUSTER_EVENTS:-1000000} \
		AEGIS_CLUSTER_WORKERS=$${AEGIS_CLUSTER_WORKERS:-4} cargo test --locked --test behaviour -- --exact --nocapture \
		past_one_machine::cluster::every_event_survives_a_failed_primary_and_moving_slots

scale: ## What an event costs through 1, 2, 4 and 8 partitions (QUICK=1: in short)
	@cargo bench --locked --bench end_to_end -- $(if $(QUICK),--quick) --filter partitions

demo: ## All of it in one go: servers, build, 200,000 events, what became of them (KEEP=1: leave it running)
	@infra/local/demo

bench: ## Measure: microbenchmarks, then every row of the README's table (QUICK=1: in short, three minutes and the build; FILTER=NAME: one row)
	@$(if $(FILTER),,cargo bench --locked --bench micro)
	@cargo bench --locked --bench end_to_end -- $(if $(QUICK),--quick) $(if $(FILTER),--filter $(FILTER))
