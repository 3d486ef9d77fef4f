#!/bin/bash
# What the official image's entrypoint does, as far as docker-compose.yml relies on it: makes a cluster where there is none, behind
# a socket alone runs /docker-entrypoint-initdb.d, then becomes the server.
set -eu
if [[ ${1-} == postgres && ! -s $PGDATA/PG_VERSION ]]; then
  chmod 700 "$PGDATA"
  # shellcheck disable=SC2086 # a list of arguments
  initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --locale-provider=builtin --locale=C.UTF-8 ${POSTGRES_INITDB_ARGS-}
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl -w start -o "${*:2} -c listen_addresses=''"
  [[ $POSTGRES_DB == postgres ]] || psql -qX -U "$POSTGRES_USER" -d postgres -c "CREATE DATABASE $POSTGRES_DB"
  for file in /docker-entrypoint-initdb.d/*.sh; do
    echo "running $file"
    "$file"
  done
  pg_ctl -w -m fast stop
fi
exec "$@"
