#!/bin/sh
# Healthy: the server has loaded its data, knows the password, and its log of writes reaches the disk.
set -eu
REDISCLI_AUTH=$(cat "${SECRETS_DIR:-/run/secrets}/redis_metrics")
export REDISCLI_AUTH
# -e: without it an error such as WRONGPASS or LOADING is printed and the exit status is 0.
cli() { redis-cli -e --no-auth-warning --user aegis-metrics -p "${REDIS_PORT:-6379}" "$@"; }
[ "$(cli ping)" = PONG ]
cli info persistence | grep -q '^aof_last_write_status:ok'
