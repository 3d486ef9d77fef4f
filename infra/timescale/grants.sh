#!/bin/sh
# roles.sql over the network, as the administrator that PGHOST, PGUSER and PGDATABASE name.
set -eu
PGPASSWORD=$(cat /run/secrets/postgres_superuser)
export PGPASSWORD SECRETS_DIR=/run/secrets
exec psql -q -X -w -f /etc/aegis/roles.sql
