#!/bin/bash
# The roles of infra/timescale and the users of infra/redis, against real servers and with the real worker: each can do its
# whole work, and nothing else; and Prometheus scrapes that worker with its key. Needs infra/local/stack install; leaves nothing behind.
#   tests/deploy/least_privilege.sh [PATH-OF-AEGIS-INGEST]
#   tests/deploy/least_privilege.sh --serve [PATH]    stays instead and prints the addresses, for tests that run as these users
# shellcheck disable=SC2015 # `ok` does not fail
set -euo pipefail
self=$(readlink -f "$0")
repo=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
cd "$repo"
serve=''
[[ ${1-} != --serve ]] || { serve=1; shift; }
aegis=${1:-target/debug/aegis-ingest}
in_root=infra/local/in-root

name=lp-$$
outside=$(infra/local/stack data-dir "$name")
inside=/data/$name
pids=()
clean() {
  local status=$?
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [[ $status -ne 0 ]]; then cat "$outside/unanswered" >&2 2>/dev/null; tail -n 8 "$outside"/{worker,redis,postgres,prometheus}.log >&2 || true; fi
  rm -rf "$outside"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}
redis_port=$(free_port) postgres_port=$(free_port) chroma_port=$(free_port) http_port=$(free_port)
passed=0
ok() { passed=$((passed + 1)); printf '  ok  %s\n' "$1"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
missed() { fail "line ${BASH_LINENO[0]}: $(sed -n "${BASH_LINENO[0]}s/^ *//p" "$self")"; }
eventually() { # WHAT COMMAND…: within 30 s
  local what=$1 i
  shift
  for ((i = 0; i < 150; i++)); do if "$@" >/dev/null 2>&1; then ok "$what"; return; fi; sleep 0.2; done
  fail "$what: not within 30 s"
}

# ------------------------------------------------------------------------------------------------ secrets, servers
infra/secrets/generate "$outside/secrets"
secret() { cat "$outside/secrets/$1"; }

mkdir -p "$outside"/{bin,redis,run,pg,chroma}
cp infra/redis/redis.conf infra/timescale/roles.sql "$outside/"
chmod -R a+rX "$outside"
owner=$(stat -c %u:%g "$(dirname "$outside")")
[[ $EUID -ne 0 ]] || chown -R "$owner" "$outside"
# The real start.sh and the real files; only folders and the port differ.
cat >"$outside/bin/redis-server" <<END
#!/bin/sh
shift
exec "$repo/$in_root" redis-server $inside/redis.conf --dir $inside/redis --aclfile $inside/run/users.acl "\$@"
END
chmod +x "$outside/bin/redis-server"
start_redis() { (umask 022; CONFIG_DIR=$repo/infra/redis SECRETS_DIR=$outside/secrets RUN_DIR=$outside/run PATH=$outside/bin:$PATH exec \
  sh -c '. "$0"' <(sed 's/^umask 077/umask 022/' "$repo/infra/redis/start.sh") --port "$redis_port" --bind 127.0.0.1 --maxmemory 256mb) >>"$outside/redis.log" 2>&1 & }
start_redis
redis_pid=$!
pids+=("$redis_pid")

template=$(infra/local/stack pg-template)
cp -a "$template/." "$outside/pg/"
rm -f "$outside/pg/.complete"
[[ $EUID -ne 0 ]] || chown -R "$owner" "$outside/pg"
# TCP and the socket ask for a password; the administrator comes in by a socket of its own folder.
printf '%s\n' "local all postgres trust" "host all all 127.0.0.1/32 scram-sha-256" >"$outside/pg/pg_hba.conf"
"$in_root" postgres -D "$inside/pg" -p "$postgres_port" -c "unix_socket_directories=$inside/pg" -c fsync=off >"$outside/postgres.log" 2>&1 &
pids+=($!)
"$in_root" chroma run --path "$inside/chroma" --host 127.0.0.1 --port "$chroma_port" >"$outside/chroma.log" 2>&1 &
pids+=($!)

redis() { # USER COMMAND…
  local user=$1
  shift
  REDISCLI_AUTH=$(secret "redis_$user") "$in_root" redis-cli -e --no-auth-warning -p "$redis_port" --user "aegis-$user" "$@"
}
admin() { "$in_root" psql -qXAt -v ON_ERROR_STOP=1 -h "$inside/pg" -p "$postgres_port" -U postgres "$@"; }
sql() { # ROLE STATEMENT
  PGPASSWORD=$(secret "postgres_$1") "$in_root" psql -qXAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U "aegis_$1" -d lp -c "$2"
}
redis_url() { echo "redis://aegis-$1:$(secret "redis_$1")@127.0.0.1:$redis_port"; }
database_url() { echo "postgres://aegis_$1:$(secret "postgres_$1")@127.0.0.1:$postgres_port/lp"; }
roles() { SECRETS_DIR=$inside/secrets admin -d lp -f "$inside/roles.sql"; }

echo "Servers"
eventually "Redis knows the metrics user by the hash of its password" redis metrics ping
eventually "PostgreSQL answers" admin -d postgres -c 'SELECT 1'
admin -d postgres -c 'CREATE DATABASE lp'
admin -d lp -c 'CREATE EXTENSION timescaledb'
roles && roles && ok "roles.sql runs twice" || missed

# --------------------------------------------------------------------------------------------------------- the work
export AEGIS_CHROMA_URL=http://127.0.0.1:$chroma_port AEGIS_LOG=warn AEGIS_HTTP_ADDR=127.0.0.1:$http_port
cd "$outside" # no .env here
[[ $aegis == /* ]] || aegis=$repo/$aegis
in_root=$repo/$in_root
export AEGIS_DATABASE_URL
AEGIS_DATABASE_URL=$(database_url worker)
if AEGIS_REDIS_URL=$(redis_url worker) "$aegis" migrate >/dev/null 2>&1; then fail "the worker's role may migrate"; fi
ok "the worker's role may not migrate"
# A retention, and aggregates, which take their readers from the tables: hence once more when these have some.
migrate() { AEGIS_DATABASE_URL=$(database_url migrator) AEGIS_RETENTION=365d AEGIS_AGGREGATES=true "$aegis" migrate >/dev/null; }
migrate && ok "the migrator migrates" || missed
[[ $(admin -d lp -c "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == aegis_owner ]] || fail "the owner does not own the tables"
ok "and what it makes belongs to the owner"
roles && ok "roles.sql grants on what exists" || missed
admin -d lp -c "INSERT INTO interaction_logs VALUES (now() - interval '400 days', gen_random_uuid(), 'old', 'old'), (now() - interval '300 days', gen_random_uuid(), 'less', 'less')"
migrate && ok "the migrator comes again" || missed

export AEGIS_LANES=interactions,sessions,embeddings,archive
export AEGIS_REDIS_URL AEGIS_MIGRATE_ON_START=false AEGIS_CLAIM_IDLE=2s AEGIS_API_KEYS_FILE=$outside/secrets/api_keys
AEGIS_REDIS_URL=$(redis_url worker)
"$aegis" run >"$outside/worker.log" 2>&1 &
worker=$!
pids+=("$worker")

if [[ $serve ]]; then
  printf '%s\n' "AEGIS_REDIS_URL=$AEGIS_REDIS_URL" "AEGIS_DATABASE_URL=$AEGIS_DATABASE_URL" "AEGIS_CHROMA_URL=$AEGIS_CHROMA_URL" \
    "PRODUCER_REDIS_URL=$(redis_url producer)" "OPERATOR_REDIS_URL=$(redis_url operator)"
  wait "$worker"
  exit
fi

echo "A worker with its least"
ready() { (exec 3<>"/dev/tcp/127.0.0.1/$http_port" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]); }
eventually "is ready" ready
now=$(date -u +%FT%TZ) id=018f0000-0000-7000-8000-000000000001
one="{\"event_id\":\"$id\",\"occurred_at\":\"$now\",\"session_id\":\"s1\",\"user_id\":\"u1\",\"transcript\":\"hello\",\"embedding\":[0.1,0.2,0.3]}"
redis producer xadd aegis:interactions '*' json "$one" >/dev/null
redis producer xadd aegis:interactions '*' json '{"session_id":"s1"}' >/dev/null
for status in started updated ended; do
  redis producer xadd aegis:sessions '*' json "{\"session_id\":\"s1\",\"user_id\":\"u1\",\"status\":\"$status\",\"state\":{\"at\":\"$status\"}}" >/dev/null
done
redis producer xadd aegis:embeddings '*' json '{"id":"v1","embedding":[0.3,0.2,0.1]}' >/dev/null
is() { [[ $("${@:2}") == "$1" ]]; }
eventually "drops what is older than the retention" is less sql reader "SELECT session_id FROM interaction_logs WHERE user_id IN ('old', 'less')"
admin -d lp -c "DELETE FROM interaction_logs WHERE user_id = 'less'"
eventually "writes interactions" is 1 sql reader "SELECT count(*) FROM interaction_logs"
eventually "which a reader finds counted by the minute" is 1 sql reader "SELECT sum(events) FROM interactions_per_minute"
eventually "writes session events" is 3 sql reader "SELECT count(*) FROM session_events"
eventually "merges sessions" is ended sql reader "SELECT status FROM sessions WHERE session_id = 's1'"
eventually "sets aside what does not parse" is 1 redis operator xlen aegis:interactions:dead
redis producer xadd aegis:interactions '*' json "$one" >/dev/null
acknowledged() { redis keda xinfo groups "aegis:$1" | grep -A1 -x pending | grep -qx 0 && redis keda xinfo groups "aegis:$1" | grep -A1 -x lag | grep -qx 0; }
for lane in interactions sessions embeddings; do eventually "settles $lane, a second copy and an inline vector included" acknowledged "$lane"; done
eventually "archives vectors" is 3 sql reader "SELECT count(*) FROM embedding_log"
is 1 sql reader "SELECT count(*) FROM interaction_logs" || fail "the second copy is a second row"
[[ $(redis operator xlen aegis:embeddings) == 3 ]] || fail "the inline vectors did not go on"
hash() { REDISCLI_AUTH=$(secret redis_worker) "$in_root" redis-cli --no-auth-warning -p "$redis_port" --user aegis-worker hmget aegis:session:s1 status; }
is ended hash || fail "no session hash"
ok "keeps session hashes"
echo "Metrics"
curl -fsS -m 5 -H "X-API-Key: $(secret scrape_key)" "http://127.0.0.1:$http_port/metrics" >"$outside/metrics"
type -P promtool >/dev/null || PATH=$PATH:$("$repo/tests/deploy/tools.sh" debian promtool)/usr/bin
"$repo/tests/deploy/metrics_exist.sh" "$outside/metrics" && ok "the rules' and the dashboard's metrics are exported, and promtool has nothing to say against them" || missed
for lacking in aegis_stream_lag aegis_events_dead_total aegis_write_duration_seconds_bucket; do
  grep -v "^$lacking" "$outside/metrics" >"$outside/fewer"
  if "$repo/tests/deploy/metrics_exist.sh" "$outside/fewer" >"$outside/said" 2>&1; then fail "metrics_exist.sh does not miss $lacking"; fi
  grep -q "not exported: $lacking" "$outside/said" || fail "metrics_exist.sh says otherwise: $(<"$outside/said")"
done
ok "and one that is not exported would be missed"
type -P prometheus >/dev/null || PATH=$PATH:$("$repo/tests/deploy/tools.sh" debian prometheus)/usr/bin
prometheus_port=$(free_port)
# The real configuration, but for how targets are found.
sed -e '/dns_sd_configs/,/refresh_interval/d' -e "s|/run/secrets|$outside/secrets|" -e "s|^    authorization:|    static_configs: [{targets: ['127.0.0.1:$http_port']}]\n&|" \
  -e 's/_interval: 15s/_interval: 1s/' "$repo/infra/prometheus/prometheus.yml" >"$outside/prometheus.yml"
cp "$repo/infra/prometheus/rules.yml" "$outside/"
prometheus --config.file="$outside/prometheus.yml" --storage.tsdb.path="$outside/tsdb" --web.listen-address="127.0.0.1:$prometheus_port" \
  >"$outside/prometheus.log" 2>&1 &
prometheus=$!
pids+=("$prometheus")
up_is() { [[ $(curl -fsS -m 5 -G "http://127.0.0.1:$prometheus_port/api/v1/query" --data-urlencode 'query=up{job="aegis-ingest"}' | jq -r '.data.result[0].value[1]') == "$1" ]]; }
eventually "Prometheus scrapes the worker with the key" up_is 1
cp "$outside/secrets/scrape_key" "$outside/kept" && echo wrong >"$outside/secrets/scrape_key"
eventually "not with another" up_is 0
cp "$outside/kept" "$outside/secrets/scrape_key"
eventually "and again with the right one, read anew" up_is 1
# What Grafana fills in is filled in; a comparison with 0 would hide what is 0 now, and no alert fires.
# shellcheck disable=SC2016
jq -r '.. | objects | .expr? // empty | strings' "$repo/infra/grafana/dashboard.json" |
  sed -e 's/\$__rate_interval/1m/g' -e 's/\$job/.+/g' -e 's/ > 0$//' -e '/^ALERTS/d' >"$outside/queries"
sed -n 's/^ *- record: //p' "$repo/infra/prometheus/rules.yml" >>"$outside/queries"
answered() {
  local query
  while read -r query; do
    curl -fsS -m 5 -G "http://127.0.0.1:$prometheus_port/api/v1/query" --data-urlencode "query=$query" | jq -e '.data.result | length > 0' >/dev/null ||
      echo "no answer to: $query"
  done <"$outside/queries" >"$outside/unanswered"
  [[ ! -s $outside/unanswered ]]
}
eventually "and has an answer to each of $(wc -l <"$outside/queries") queries of dashboard and rules" answered
[[ $(curl -fsS -m 5 "http://127.0.0.1:$prometheus_port/api/v1/rules" | jq '[.data.groups[].rules[] | select(.health == "err")] | length') == 0 ]] && ok "and no rule fails" || missed
kill "$prometheus"
wait "$prometheus" || true

echo "Crashes"
kill -KILL "$worker"
wait "$worker" 2>/dev/null || true
redis producer xadd aegis:sessions '*' json '{"session_id":"s2","user_id":"u1","status":"started"}' >/dev/null
redis worker xreadgroup group aegis gone streams aegis:sessions '>' >/dev/null # a worker that dies with it
"$aegis" run >>"$outside/worker.log" 2>&1 &
worker=$!
pids+=("$worker")
eventually "takes over what a dead worker left" is 4 sql reader "SELECT count(*) FROM session_events"
eventually "and acknowledges it" acknowledged sessions
kill -TERM "$worker"
wait "$worker" || fail "the worker did not leave with status 0"
ok "drains and leaves the group on SIGTERM"
if grep -E 'NOPERM|permission denied|42501|refuses' "$outside/worker.log"; then fail "the worker was refused something"; fi
ok "and was refused nothing"

# Redis reads its own log with the rights of the default user: too few, and it forgets what scripts and group reads wrote.
known() { for lane in interactions sessions embeddings; do redis operator xinfo groups "aegis:$lane"; done; redis operator xlen aegis:interactions:dead; hash; }
before=$(known)
kill -KILL "$redis_pid"
wait "$redis_pid" 2>/dev/null || true
start_redis
redis_pid=$!
pids+=("$redis_pid")
eventually "Redis comes back after a crash" redis metrics ping
[[ $(known) == "$before" ]] || fail "Redis forgot: $before // $(known)"
ok "and knows groups, dead letters and session hashes"

echo "An operator with its least"
operate() { AEGIS_REDIS_URL=$(redis_url operator) "$aegis" "$@"; }
operate status >/dev/null && ok "status" || missed
operate dead list >"$outside/dead" && grep -q missing_field "$outside/dead" && ok "dead list" || missed
operate dead replay --all >/dev/null && is 0 redis operator xlen aegis:interactions:dead && ok "dead replay" || missed
"$aegis" run >>"$outside/worker.log" 2>&1 &
worker=$!
pids+=("$worker")
eventually "what fails again is set aside again" is 1 redis operator xlen aegis:interactions:dead
kill -TERM "$worker"
wait "$worker" || fail "the worker did not leave with status 0"
AEGIS_DATABASE_URL=$(database_url reader) operate embeddings rebuild --wait 5s >/dev/null && ok "embeddings rebuild, with the reader's role" || missed
before=$(sql reader "SELECT md5(string_agg(s::text, ';' ORDER BY session_id)) FROM sessions s")
admin -d lp -c 'TRUNCATE sessions'
REDISCLI_AUTH=$(secret redis_worker) "$in_root" redis-cli --no-auth-warning -p "$redis_port" --user aegis-worker hdel aegis:session:s1 \
  user_id status seq started_at updated_at ended_at state status_version state_version >/dev/null
AEGIS_DATABASE_URL=$(database_url migrator) operate sessions rebuild >/dev/null && is ended hash &&
  is "$before" sql reader "SELECT md5(string_agg(s::text, ';' ORDER BY session_id)) FROM sessions s" && ok "sessions rebuild" || missed
operate dead drop --all --yes >/dev/null && is 0 redis operator xlen aegis:interactions:dead && ok "dead drop" || missed

echo "An eraser with its least"
erase() { AEGIS_REDIS_URL=$(redis_url eraser) AEGIS_DATABASE_URL=$(database_url eraser) "$aegis" erase "$@" 2>/dev/null; }
redis producer xadd aegis:interactions '*' json '[{"session_id":"s1","user_id":"u1","transcript":"unread"},{"session_id":"s9","user_id":"u9"}]' >/dev/null
erase --user-id u1 >"$outside/erased" || fail "erase: $(cat "$outside/erased")"
grep -q 'rows of interaction_logs' "$outside/erased" && ok "erase"
for table in interaction_logs session_events sessions embedding_log; do
  is 0 sql reader "SELECT count(*) FROM $table WHERE user_id = 'u1'" || fail "$table holds rows of u1"
done
[[ -z $(hash) ]] && ok "and nothing is left"
"$aegis" run >>"$outside/worker.log" 2>&1 &
worker=$!
pids+=("$worker")
eventually "what others had in the same entry is written" is 1 sql reader "SELECT count(*) FROM interaction_logs WHERE user_id = 'u9'"
kill -TERM "$worker"
wait "$worker" || fail "the worker did not leave with status 0"
no_row() { ! sql eraser "$1" >/dev/null 2>&1 || fail "eraser may: $1"; ok "eraser may not: $1"; }
for statement in "INSERT INTO interaction_logs (occurred_at, event_id, session_id, user_id) VALUES (now(), gen_random_uuid(), 's', 'u')" \
  "UPDATE sessions SET seq = 0" "DROP TABLE sessions" "TRUNCATE sessions" "CREATE TABLE mine (x int)" "SELECT * FROM refinery_schema_history"; do
  no_row "$statement"
done

# ---------------------------------------------------------------------------------------------------- nothing else
echo "And nothing else: PostgreSQL"
admin -d lp -c "CREATE TABLE other (secret text); INSERT INTO other VALUES ('x'); ALTER TABLE other OWNER TO aegis_owner"
denied() { # ROLE STATEMENT
  local error
  if error=$(sql "$1" "$2" 2>&1); then fail "$1 may: $2"; fi
  [[ $error == *'permission denied'* || $error == *'must be owner'* || $error == *'must be able to SET ROLE'* ||
    $error == *'read-only transaction'* || $error == *'must have'* || $error == *'Only roles with'* ]] || fail "$1: $2: fails otherwise: $error"
  ok "$1 may not: $2"
}
for statement in "SELECT * FROM interaction_logs" "SELECT * FROM session_events" "SELECT * FROM embedding_log" "SELECT * FROM other" "SELECT * FROM refinery_schema_history" \
  "INSERT INTO refinery_schema_history VALUES (9)" "DELETE FROM sessions" "TRUNCATE interaction_logs" "UPDATE interaction_logs SET intent = ''" \
  "DELETE FROM interaction_logs" "ALTER TABLE sessions ADD x int" "DROP TABLE sessions" "CREATE TABLE mine (x int)" "CREATE SCHEMA mine" \
  "SELECT drop_chunks('interaction_logs', now())" "UPDATE aegis_policies SET retention = '1 day'" "DELETE FROM aegis_policies" \
  "INSERT INTO aegis_hypertables VALUES ('sessions', '')" "SELECT * FROM interactions_per_minute" "SELECT set_chunk_time_interval('interaction_logs', interval '1 hour')" \
  "CREATE OR REPLACE FUNCTION aegis_drop_expired() RETURNS int LANGUAGE sql AS 'SELECT 1'" "SET ROLE aegis_owner" "COPY interaction_logs TO STDOUT" "COPY sessions TO PROGRAM 'true'" \
  "CREATE ROLE mine" "ALTER ROLE aegis_worker SUPERUSER" "SELECT pg_read_file('/etc/passwd')"; do
  denied worker "$statement"
done
for statement in "SELECT * FROM aegis_drop_expired()" "UPDATE aegis_policies SET retention = NULL" "INSERT INTO sessions (session_id) VALUES ('x')" "DELETE FROM interaction_logs" "DROP TABLE sessions" "CREATE TABLE mine (x int)" \
  "SET ROLE aegis_owner" "BEGIN READ WRITE; UPDATE sessions SET seq = 0" "CREATE TEMPORARY TABLE mine (x int)"; do
  denied reader "$statement"
done
denied migrator "RESET ROLE; SET ROLE postgres"
for role in aegis_owner postgres; do
  if PGPASSWORD='' "$in_root" psql -qXAt -w -h 127.0.0.1 -p "$postgres_port" -U "$role" -d lp -c 'SELECT 1' >/dev/null 2>&1; then fail "$role logs in"; fi
done
ok "the owner cannot log in"

echo "And nothing else: Redis"
no() { # USER COMMAND…
  local error
  if error=$(redis "$@" 2>&1); then fail "$* is allowed"; fi
  [[ $error == *NOPERM* || $error == *'ACL failure in script'* ]] || fail "$*: fails otherwise: $error"
  ok "$1 may not: ${*:2}"
}
all=(get\ x "set aegis:x 1" "del aegis:interactions" "keys *" "flushall" "config get *" "acl list" "acl setuser x" "client list" "client kill 1.1.1.1:1"
  "subscribe x" "shutdown" "script flush" "function list" "xtrim aegis:interactions maxlen 0" "xdel aegis:interactions 1-1"
  "save" "replicaof no one" "module list" "monitor" "psync ? -1" "eval return(1) 0" "xadd other * a b" "hgetall other")
for command in "${all[@]}"; do
  read -ra words <<<"$command"
  for user in producer worker operator metrics keda; do
    case "$user $command" in
      "worker eval"* | "operator eval"*) continue ;; # a script is no more than the commands in it: below
      "worker xtrim"*) continue ;; # trims what every group has settled; Redis cannot tell that from other trimming
    esac
    no "$user" "${words[@]}" >/dev/null
  done
done
ok "no user may any of: ${#all[@]} commands"
for command in ping info "xlen aegis:interactions" "xrange aegis:interactions - +" "xread streams aegis:interactions 0" \
  "xgroup destroy aegis:interactions aegis" "xadd aegis:interactions:dead * a b" "xadd aegis:session:s1 * a b" "hgetall aegis:session:s1"; do
  read -ra words <<<"$command"
  no producer "${words[@]}"
done
no worker xadd aegis:interactions '*' json '{}'
no worker xadd aegis:sessions '*' json '{}'
no worker xgroup destroy aegis:interactions aegis
no worker xgroup setid aegis:interactions aegis 0
no worker del aegis:session:s1
no worker eval "return redis.call('set', KEYS[1], 1)" 1 aegis:sessions
no worker eval "return redis.call('keys', '*')" 0
no operator eval "return redis.call('xtrim', KEYS[1], 'MAXLEN', 0)" 1 aegis:sessions
no operator hgetall aegis:session:s1
no eraser xtrim aegis:interactions maxlen 0
no eraser xgroup destroy aegis:interactions aegis
no eraser del aegis:interactions
no eraser set aegis:session:s1 x
no eraser flushall
no eraser get other
no operator xreadgroup group aegis me streams aegis:sessions '>'
no metrics xrange aegis:interactions - +
no keda xrange aegis:interactions - +
no keda xreadgroup group aegis me streams aegis:sessions '>'
if "$in_root" redis-cli -e -p "$redis_port" ping >/dev/null 2>&1; then fail "somebody without a name may ping"; fi
ok "nobody without a name"
if REDISCLI_AUTH=wrong "$in_root" redis-cli -e --no-auth-warning -p "$redis_port" --user aegis-metrics ping >/dev/null 2>&1; then fail "a wrong password"; fi
ok "nobody with a wrong password"
redis operator xlen aegis:interactions >/dev/null && redis metrics xinfo stream aegis:sessions >/dev/null && redis keda xpending aegis:sessions aegis >/dev/null
ok "operator, metrics and KEDA can do their work"
echo "$passed checks passed"
