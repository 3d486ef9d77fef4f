#!/bin/sh
# Runs once, when the image's entrypoint has made a new cluster: the roles, so that the first migration finds them.
# /bin/sh of the entrypoint's own environment: POSTGRES_USER and POSTGRES_DB are set, the server listens on its socket alone.
set -eu
SECRETS_DIR=/run/secrets psql -q --no-psqlrc -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c 'CREATE EXTENSION IF NOT EXISTS timescaledb' \
  -f /etc/aegis/roles.sql
