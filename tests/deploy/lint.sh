#!/bin/bash
# Everything under infra, docker-compose.yml and the Dockerfile, as far as it can be judged without running it: lint.sh
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
PATH=$("$here/tools.sh" python):$PATH
type -P promtool >/dev/null || PATH=$("$here/tools.sh" debian promtool)/usr/bin:$PATH
export PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf '  ok  %s\n' "$1"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
quiet() { "$@" >"$work/out" 2>&1 || { cat "$work/out" >&2; fail "$*"; }; }

quiet yamllint -s -c infra/yamllint.yml docker-compose.yml infra/chroma infra/compose infra/grafana infra/prometheus \
  infra/kubernetes/aegis-ingest/Chart.yaml infra/kubernetes/aegis-ingest/values.yaml infra/kubernetes/aegis-ingest/values
say "yamllint"
quiet shellcheck -s sh infra/*/*.sh infra/secrets/generate --exclude=SC3025,SC3045,SC3010,SC3014 # infra/chroma's is bash, and checked as such below
quiet shellcheck infra/chroma/healthcheck.sh tests/deploy/*.sh tests/deploy/images/*.sh
say "shellcheck"
quiet hadolint --failure-threshold info Dockerfile
say "hadolint"
quiet python tests/deploy/dashboard.py infra/grafana/dashboard.json
say "the dashboard: panels, queries, and what the first screen answers"
quiet promtool check rules infra/prometheus/rules.yml
quiet promtool check config --syntax-only infra/prometheus/prometheus.yml
quiet promtool test rules infra/prometheus/rules_test.yml
say "promtool: rules, configuration, unit tests"
grep -oP "alert: \K\w+" infra/prometheus/rules.yml | while read -r alert; do
  grep -A 2 "alertname: $alert\$" infra/prometheus/rules_test.yml | grep -q exp_labels || fail "no unit test in which $alert fires"
done
say "each alert fires in a unit test"

compose=(docker compose)
"${compose[@]}" version >/dev/null 2>&1 || compose=("$("$here/tools.sh" debian docker-compose)/usr/libexec/docker/cli-plugins/docker-compose")
dc() { "${compose[@]}" --env-file /dev/null "$@"; }
quiet dc --profile load --profile prometheus --profile proxy config -q
quiet dc -f docker-compose.yml -f infra/compose/ports.yml config -q
dc --profile load --profile prometheus --profile proxy config --format json >"$work/compose.json"
jq -e '[.services[] | select(.image | test("^aegis-ingest:") | not) | .image | test(":[^:]*[0-9]+[.][0-9]+")] | all' "$work/compose.json" >/dev/null || fail "an image without a version"
jq -e '[.services | to_entries[] | select(.key != "prometheus" and .key != "chroma-proxy") | .value.ports // [] | length == 0] | all' "$work/compose.json" >/dev/null || fail "a published port"
jq -e '[.services[].read_only] | all' "$work/compose.json" >/dev/null || fail "a root that can be written"
jq -e '[.services[].init] | all' "$work/compose.json" >/dev/null || fail "a server that has to bury strangers' children"
say "docker compose config"

chart=infra/kubernetes/aegis-ingest
render() { helm template aegis "$chart" --namespace voice "$@" 2>/dev/null; }
all=(--set 'hpa.enabled=true,partitions=3,caConfigMap=ca,clientCertSecret=client,chromaToken=true,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000')
i=0
for values in "" "-f $chart/values/one-machine.yaml" "-f $chart/values/managed.yaml" "${all[*]}" "--set migrate.enabled=false,networkPolicy.enabled=false,serviceAccount.create=false"; do
  # shellcheck disable=SC2086 # a list of arguments
  {
    quiet helm lint --strict "$chart" $values
    render $values >"$work/all.yaml" || fail "helm template $values"
  }
  objects=Deployment
  case $values in
    '') objects=Deployment,Job,ServiceAccount,PodDisruptionBudget,NetworkPolicy ;;
    *managed*) objects=Deployment,Job,ServiceAccount,PodDisruptionBudget,NetworkPolicy,PodMonitor,PrometheusRule,ScaledObject,TriggerAuthentication ;;
    *hpa*) objects=Deployment,HorizontalPodAutoscaler ;;
  esac
  python - "$work/all.yaml" "$work/native-$i.yaml" "$objects" <<'END'
import sys, yaml
documents = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d]
custom = ("monitoring.coreos.com/", "keda.sh/")
native = [d for d in documents if not d["apiVersion"].startswith(custom)]
assert any(d["kind"] == "Deployment" for d in native)
pod = next(d for d in native if d["kind"] == "Deployment")["spec"]["template"]["spec"]
env = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
drain = int(env["AEGIS_DRAIN_TIMEOUT"].rstrip("s"))
assert pod["terminationGracePeriodSeconds"] > drain
assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/healthz"
kinds = {d["kind"] for d in documents}
if len(sys.argv) > 3:
    lacking = set(sys.argv[3].split(",")) - kinds
    assert not lacking, f"no {lacking}"
assert not (kinds & {"ScaledObject"} and kinds & {"HorizontalPodAutoscaler"})
assert all(d["automountServiceAccountToken"] is False for d in documents if d["kind"] == "ServiceAccount")
assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
assert not any("://" in v and "@" in v for v in env.values()), "a password in the environment"
scaled = next((d for d in documents if d["kind"] == "ScaledObject"), None)
if scaled:
    counts = [set(t["metadata"]) & {"lagCount", "pendingEntriesCount"} for t in scaled["spec"]["triggers"]]
    groups = {(t["metadata"]["stream"].split(":{")[0].rsplit(":", 1)[1], t["metadata"]["consumerGroup"]) for t in scaled["spec"]["triggers"]}
    assert not any(stream == "archive" for stream, _ in groups), groups
    assert ("embeddings", "aegis-archive") in groups or "archive" not in env["AEGIS_LANES"], groups
    assert scaled["spec"]["minReplicaCount"] >= 1 and {"lagCount"} in counts and {"pendingEntriesCount"} in counts
yaml.safe_dump_all(native, open(sys.argv[2], "w"))
END
  for version in 1.29.1 1.37.0; do quiet kubernetes-validate --strict -k "$version" "$work/native-$i.yaml"; done
  i=$((i + 1))
done
say "helm: linted, rendered and valid for Kubernetes 1.29 and 1.37, $i sets of values"
for wrong in 'lanes={interaction}' 'replicas=many' 'settings.AEGIS_REDIS_URL=redis://u:p@h' 'settings.REDIS=x' 'chromaUrl=chroma:8000' 'keda.minReplicas=0' \
  'partitions=0' 'image.digest=latest' 'reponse=1' 'keda.enabled=true,hpa.enabled=true' 'drainTimeoutSeconds=20s' \
  'clientCertSecret=No!' 'replicas=-1' 'lanes=null'; do
  if render --set "$wrong" >/dev/null; then fail "the chart takes $wrong"; fi
done
say "values.schema.json refuses wrong values"

if cargo deny --version >/dev/null 2>&1; then
  quiet cargo deny --locked check
  say "cargo deny"
else
  cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu | python tests/deploy/licenses.py deny.toml || fail "deny.toml"
  say "licences, bans and sources of deny.toml"
  echo '######## NOT LOOKED AT: advisories on dependencies. cargo-deny is not installed. ########' >&2
fi
