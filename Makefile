.PHONY: up down clean demo

up: ## Install and start Redis, TimescaleDB and Chroma here (STACK=docker: with Docker)
	@infra/local/stack up

down: ## Stop them; the data stay
	@infra/local/stack down

clean: ## Stop them and remove them with their data
	@infra/local/stack clean

demo: ## All of it in one go: servers, build, 200,000 events, what became of them (KEEP=1: leave it running)
	@infra/local/demo
