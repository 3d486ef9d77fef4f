#!/bin/bash
# docker-compose.yml as it is, on a real engine, with images that stand in where no registry is (tests/deploy/images):
#   tests/deploy/compose.sh PATH-OF-AEGIS-INGEST | image:NAME     the program, or an image with it, such as tests/deploy/image.sh leaves
# Without an engine it says so and ends with status 77. Leaves nothing running and no volume behind; KEEP=1 keeps all for a look.
# shellcheck disable=SC2015 # `ok` does not fail
set -euo pipefail
self=$(readlink -f "$0")
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
aegis=${1:-target/debug/aegis-ingest}
if ! docker info >/dev/null 2>&1; then
  echo '######## NOT TESTED: docker-compose.yml. No Docker engine answers here. ########' >&2
  exit 77
fi
compose=(docker compose)
if ! "${compose[@]}" version >/dev/null 2>&1; then
  compose=("$("$here/tools.sh" debian docker-compose)/usr/libexec/docker/cli-plugins/docker-compose")
fi
project=aegis-test-$$
# /dev/null: a developer's .env is no part of this.
dc() { "${compose[@]}" --env-file /dev/null -p "$project" "$@"; }
export STACK_VERSION=test STACK_SECRETS_DIR=$PWD/target/deploy/secrets-$$
export STACK_PROMETHEUS_PORT=$((20000 + RANDOM % 5000)) STACK_CHROMA_PROXY_PORT=$((25000 + RANDOM % 5000))
all=(--profile load --profile prometheus --profile proxy)
clean() {
  local status=$?
  if [[ $status -ne 0 ]]; then
    dc "${all[@]}" ps -a || true
    dc "${all[@]}" logs --tail 12 --no-color app redis timescaledb 2>&1 | cut -c 1-250 || true
  fi
  # A load that is still at it is no part of what `down` takes down.
  [[ ${KEEP-} ]] || docker ps -aq --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.oneoff=True | xargs -r docker rm -f >/dev/null
  [[ ${KEEP-} ]] || { dc "${all[@]}" down -v -t 30 >/dev/null 2>&1 || true; rm -rf "$STACK_SECRETS_DIR"; }
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

began=$SECONDS passed=0
ok() { passed=$((passed + 1)); printf '  ok  %4d s  %s\n' $((SECONDS - began)) "$1"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
missed() { fail "line ${BASH_LINENO[0]}: $(sed -n "${BASH_LINENO[0]}s/^ *//p" "$self")"; }
eventually() { # WHAT SECONDS COMMAND…
  local what=$1 until=$((SECONDS + $2))
  shift 2
  until "$@" >/dev/null 2>&1; do
    [[ $SECONDS -lt $until ]] || fail "$what: not in time"
    sleep 0.5
  done
  ok "$what"
}
quiet() { local out; out=$("$@" 2>&1) || { printf '%s\n' "$out" | tail -n 20 >&2; return 1; }; }
up() { quiet dc up -d --wait "$@"; }
secret() { cat "$STACK_SECRETS_DIR/$1"; }
app() { dc exec -T app /usr/local/bin/aegis-ingest "$@"; }
sql() { dc exec -T -e PGPASSWORD="$(secret postgres_reader)" timescaledb psql -qXAt -h 127.0.0.1 -U aegis_reader -d aegis -c "$1"; }
redis() { dc exec -T -e REDISCLI_AUTH="$(secret redis_metrics)" redis redis-cli -e --no-auth-warning --user aegis-metrics "$@"; }
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$1" | cut -d ' ' -f 1; }
chroma=/api/v2/tenants/default_tenant/databases/default_database/collections
ask() { curl -fsS -m 5 "http://$(address "$(dc ps -q chromadb)"):8000$chroma$1"; }
vectors() { ask "/$(ask '' | jq -r '.[] | select(.name == "interactions") | .id')/count"; }
rows() { sql "SELECT count(*) FROM $1"; }
hashes() { # as the worker counts them: one a session
  sql 'SELECT session_id FROM sessions' | sed -n 1,50p | sed 's/.*/HMGET aegis:session:& status/' |
    dc exec -T -e REDISCLI_AUTH="$(secret redis_worker)" redis redis-cli --no-auth-warning --user aegis-worker | grep -cE 'started|updated|ended'
}
# SET and GET as far as the worker's user may: the hash of a session, written and read back.
kept() {
  local key=aegis:session:compose-test
  redis_worker() { dc exec -T -e REDISCLI_AUTH="$(secret redis_worker)" redis redis-cli -e --no-auth-warning --user aegis-worker "$@"; }
  redis_worker hset $key status started >/dev/null && [[ $(redis_worker hmget $key status) == started ]] && redis_worker hdel $key status >/dev/null
}
# --no-deps: it would scale the app back to one.
produce() { quiet dc run --rm -T --no-deps load produce "$@"; }
# What was ever added: what is settled may be trimmed meanwhile.
added() { redis xinfo stream "aegis:$1" | sed -n "/^entries-added$/{n;p}"; }
settled() { # everything that came into the streams is in the stores
  [[ $(rows interaction_logs) == "$(added interactions)" && $(rows session_events) == "$(added sessions)" &&
    $(vectors) == "$(added embeddings)" ]]
}
stored() { echo "$(rows interaction_logs) $(rows session_events) $(rows sessions) $(vectors) $(added interactions) $(hashes)"; }
unchanged() { [[ $(stored) == "$before" ]]; }

"$here/images/build.sh" "$aegis"
infra/secrets/generate "$STACK_SECRETS_DIR"
echo "Up"
up && ok "up -d --wait ends with all services healthy" || missed
for container in $(dc ps -q); do
  docker inspect "$container" | jq -e '.[0] | .HostConfig.ReadonlyRootfs and (.HostConfig.CapDrop == ["ALL"]) and (.HostConfig.CapAdd == null)
    and (.Config.User | test("^[1-9]")) and (.HostConfig.PortBindings | length == 0) and .HostConfig.Memory > 0 and .HostConfig.PidsLimit > 0
    and .HostConfig.LogConfig.Config["max-size"] == "10m" and (.HostConfig.SecurityOpt | index("no-new-privileges:true"))' >/dev/null ||
    fail "$(docker inspect -f '{{.Name}}' "$container") is less confined than it should be"
done
ok "each runs read-only, without capabilities, as a user of its own, within limits, and publishes nothing"
eventually "the worker reaches all three, SELECT 1 included" 60 app check
kept && ok "and its user sets and gets what it keeps in Redis" || missed
if dc exec -T app /bin/sh -c true >/dev/null 2>&1; then fail "the app's image has a shell"; fi
ok "and there is no shell beside it"

# What a health check leaves behind that took too long: a child of nobody, which dies of its broken pipe.
dc exec -T timescaledb /bin/sh -c '/bin/sh -c "kill -PIPE \$\$" &'
rows sessions >/dev/null || fail "PostgreSQL went down with a stranger's child"
if dc logs timescaledb 2>&1 | grep -F 'was terminated by signal'; then fail "PostgreSQL took a stranger's child for its own"; fi
ok "PostgreSQL outlives what a health check leaves behind"

echo "Traffic"
produce --count 3000 && ok "produce writes with the producer's user" || missed
eventually "all of it is in TimescaleDB and Chroma" 90 settled
[[ $(hashes) -gt 0 ]] && ok "and sessions are in Redis, written and read back by the worker's user" || missed
up --scale app=3 && ok "--scale app=3" || missed
produce --count 9000 --rate 3000 # long enough for each to get a share
eventually "all of it is there" 90 settled
mapfile -t apps < <(dc ps -q app)
read_by() { curl -fsS -m 5 -H "X-API-Key: $(secret scrape_key)" "http://$(address "$1"):9464/metrics" | awk '/^aegis_entries_read_total/ {n += $2} END {print n}'; }
for container in "${apps[@]}"; do [[ $(read_by "$container") -gt 0 ]] || fail "$container read nothing"; done
ok "three workers share it"
[[ $(curl -s -m 5 -o /dev/null -w '%{http_code}' -H 'X-API-Key: wrong' "http://$(address "${apps[0]}"):9464/metrics") == 401 ]] && ok "a wrong API key gets 401" || missed
load_goes_on() { [[ $(added interactions) -gt $load_from ]]; }
load_from=$(added interactions)
quiet dc --profile load up -d --no-recreate --scale app=3 load
eventually "the profile load brings a load" 30 load_goes_on
quiet dc --profile load rm -sf load
eventually "which is written as well" 60 settled
"$here/metrics_exist.sh" "http://$(address "${apps[0]}"):9464/metrics" "$(secret scrape_key)" && ok "the rules' and the dashboard's metrics are exported" || missed

echo "Prometheus and the proxy"
quiet dc --profile prometheus --profile proxy up -d --wait --scale app=3
prom() { curl -fsS -m 5 -G "http://127.0.0.1:$STACK_PROMETHEUS_PORT/api/v1/$1" "${@:2}"; }
scraped() { [[ $(prom query --data-urlencode 'query=sum(up{job="aegis-ingest"})' | jq -r '.data.result[0].value[1]') == 3 ]]; }
eventually "Prometheus scrapes three workers with the key" 60 scraped
[[ $(prom rules | jq '[.data.groups[].rules[] | select(.type == "alerting")] | length') == $(grep -c 'alert:' infra/prometheus/rules.yml) ]] && ok "and has the alerts" || missed
[[ $(prom rules | jq '[.data.groups[].rules[] | select(.health == "err")] | length') == 0 ]] && ok "none of which fails" || missed
through() { curl -s -m 5 -o /dev/null -w '%{http_code}' "${@:2}" "http://127.0.0.1:$STACK_CHROMA_PROXY_PORT$1"; }
token=$(secret chroma_token)
[[ $(through "$chroma" -H "x-chroma-token: $token") == 200 ]] && ok "the proxy lets the token through" || missed
for other in '' "x${token}" "${token}x" "${token^^}" '.*'; do [[ $(through "$chroma" -H "x-chroma-token: $other") == 401 ]] || fail "the proxy lets '$other' through"; done
[[ $(through "$chroma") == 401 ]] && ok "and nothing else" || missed
quiet dc --profile prometheus --profile proxy rm -sf prometheus chroma-proxy

echo "Nothing is lost"
groups() { for lane in interactions sessions embeddings; do redis xinfo groups "aegis:$lane"; done; }
quiet dc stop app
before=$(groups)
quiet dc restart redis && up --no-deps redis
# Redis skips what scripts and group reads wrote when its log is read with too few rights: see infra/redis/users.acl.
[[ $(groups) == "$before" ]] && ok "Redis knows after a restart what was read and acknowledged" || missed
if dc logs redis 2>&1 | grep -F CRITICAL; then fail "Redis could not read its whole log"; fi
up --scale app=3
before=$(stored)
quiet dc restart && up --scale app=3
eventually "restart loses no row, key or vector ($before)" 90 unchanged
quiet dc down -t 60 && up --scale app=3
eventually "down and up loses no row, key or vector" 90 unchanged
produce --count 3000 --rate 300 &
traffic=$!
for service in app redis timescaledb chromadb; do
  container=$(dc ps -q "$service" | sed -n 1p)
  # `docker kill` counts as a stop by hand, after which nothing restarts; a crash is a signal from elsewhere. Chroma is not killed
  # in mid-write: that can ruin a collection for good, and nobody's healing mends it.
  signal=KILL
  [[ $service != chromadb ]] || signal=TERM
  pid=$(docker inspect -f '{{.State.Pid}}' "$container")
  kill -s "$signal" "$pid" || fail "this needs to signal the engine's processes: run it as root on the engine's machine"
  # Between death and restart the pid is 0 and the old health still stands.
  healed() {
    local now
    now=$(docker inspect -f '{{.State.Pid}} {{.State.Health.Status}}' "$container")
    [[ $now == [1-9]*" healthy" && $now != "$pid "* ]]
  }
  eventually "$service heals by itself" 120 healed
done
# A producer that Redis left in the lurch may give up; what it was told is stored must be.
wait "$traffic" || echo "      (the load ended with Redis)"
produce --count 500
eventually "and all that stands in the streams is in the stores" 120 settled

echo "Health checks fail when they should"
health() { docker inspect -f '{{.State.Health.Status}}' "$(dc ps -q "$1" | sed -n 1p)"; }
is() { [[ $(health "$1") == "$2" ]]; }
# In place: the container sees this very file.
keep=$(secret redis_metrics)
echo wrong >"$STACK_SECRETS_DIR/redis_metrics"
postmaster() { dc exec -T timescaledb /bin/sh -c "kill -$1 \$(head -n 1 \"\$PGDATA\"/postmaster.pid)"; }
postmaster STOP
eventually "Redis is unhealthy with a wrong password" 90 is redis unhealthy
eventually "PostgreSQL is unhealthy while it takes no connection" 120 is timescaledb unhealthy
echo "$keep" >"$STACK_SECRETS_DIR/redis_metrics"
postmaster CONT
# A worker goes on over the connections that it has: they have to fall silent too.
docker pause "$(dc ps -q timescaledb)" >/dev/null
eventually "the worker is unhealthy while PostgreSQL does not answer" 90 is app unhealthy
docker unpause "$(dc ps -q timescaledb)" >/dev/null
for service in redis timescaledb app; do eventually "$service is healthy again" 60 is "$service" healthy; done
network=${project}_stores
wrong=$(docker run --rm --network "$network" -e AEGIS_REDIS_URL=redis://aegis-worker:wrong@redis:6379 -e AEGIS_LANES=embeddings \
  -e AEGIS_CHROMA_URL=http://chromadb:8000 "aegis-ingest:$STACK_VERSION" run 2>&1) && fail "a worker runs with a wrong password"
[[ $wrong == *WRONGPASS* || $wrong == *refuses* ]] && ok "a worker with a wrong password ends and says so" || missed
# A server on its socket alone, as during initdb, is not healthy.
if dc exec -T timescaledb /bin/sh -c 'sed "s/127.0.0.1/127.0.0.2 -p 1/" /etc/aegis/healthcheck.sh | sh' >/dev/null 2>&1; then fail "healthy without TCP"; fi
ok "PostgreSQL's does not pass without TCP"
quiet dc stop -t 60 app
mapfile -t apps < <(dc ps -aq app)
mapfile -t ended < <(docker inspect -f '{{.State.ExitCode}}' "${apps[@]}")
[[ "${ended[*]}" == "0 0 0" ]] && ok "three workers drain and end with status 0" || missed
echo "$passed checks passed"
