#!/bin/sh
# Writes the ACL file with the hashes of the passwords, then becomes the server: start.sh [redis-server's arguments].
# The image's own entrypoint is left out: it would load modules that nothing here uses.
set -eu
here=${CONFIG_DIR:-/etc/aegis} secrets=${SECRETS_DIR:-/run/secrets} run=${RUN_DIR:-/run/redis}
umask 077
# One line a user, as Redis wants it.
users=$(sed -e '/^#/d' -e '/^$/d' "$here/users.acl" | awk '/^user /{ if (n++) printf "\n" } { sub(/^ +/, " "); printf "%s", $0 } END { print "" }')
for name in producer worker operator eraser metrics keda; do
  [ -s "$secrets/redis_$name" ] || { echo "start.sh: $secrets/redis_$name is missing or empty" >&2; exit 1; }
  # The line end of an edited file is no part of the password.
  hash=$(printf %s "$(cat "$secrets/redis_$name")" | sha256sum | cut -d ' ' -f 1)
  users=$(printf '%s\n' "$users" | sed "s/{redis_$name}/$hash/")
done
printf '%s\n' "$users" >"$run/users.acl"
exec redis-server "$here/redis.conf" "$@"
