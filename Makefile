.PHONY: up down clean

up: ## Install and start Redis, TimescaleDB and Chroma here (STACK=docker: with Docker)
	@infra/local/stack up

down: ## Stop them; the data stay
	@infra/local/stack down

clean: ## Stop them and remove them with their data
	@infra/local/stack clean
