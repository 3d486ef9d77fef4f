#!/bin/sh
# Healthy: over TCP, which the entrypoint's first start does not serve (pg_isready without -h would pass during initdb), this
# database answers and has the extension.
set -eu
PGPASSWORD=$(cat /run/secrets/postgres_worker) PGCONNECT_TIMEOUT=3
export PGPASSWORD PGCONNECT_TIMEOUT
[ "$(psql -qXAt -w -h 127.0.0.1 -U aegis_worker -d aegis -c "SELECT 'ready' FROM pg_extension WHERE extname = 'timescaledb'")" = ready ]
