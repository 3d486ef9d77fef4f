.PHONY: up down clean test demo bench

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

demo: ## All of it in one go: servers, build, 200,000 events, what became of them (KEEP=1: leave it running)
	@infra/local/demo

bench: ## Measure: microbenchmarks, then every row of the README's table (QUICK=1: in three minutes; FILTER=NAME: one row)
	@$(if $(FILTER),,cargo bench --locked --bench micro)
	@cargo bench --locked --bench end_to_end -- $(if $(QUICK),--quick) $(if $(FILTER),--filter $(FILTER))
