#!/bin/bash
# Every metric that the rules and the dashboard name is one that a live worker exports, with the labels they use; and every query is
# one that Prometheus can parse.   metrics_exist.sh FILE-OR-URL-OF-METRICS [API-KEY]
# shellcheck disable=SC2001 # several lines, each with a prefix
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
[[ $# -ge 1 ]] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
if [[ $1 == http* ]]; then metrics=$(curl -fsS ${2:+-H "Authorization: Bearer $2"} "$1"); else metrics=$(<"$1"); fi
exported=$(grep -oE '^aegis_[a-z_]+' <<<"$metrics" | sort -u)
[[ -n $exported ]] || { echo "no aegis_ metric at $1" >&2; exit 1; }

rules=$(sed -n '/^ *\(expr:\|  *[^-#a-z]\|.*aegis_\)/p' infra/prometheus/rules.yml | grep -vE '^ *(- record:|- name:|- alert:|#)')
dashboard=$(jq -r '.. | objects | (.expr?, .query?.query?) // empty | strings' infra/grafana/dashboard.json)
# The names of recorded series hold the name of what they are made of, behind a colon; job names hold a dash.
named=$(printf '%s\n%s\n' "$rules" "$dashboard" | grep -oE '[a-z0-9_:-]*aegis[a-z0-9_:-]*' | grep -vE '[:-]|^aegis$' | sort -u)
failed=0
missing=$(comm -23 <(echo "$named") <(echo "$exported"))
if [[ -n $missing ]]; then sed 's/^/named and not exported: /' <<<"$missing" >&2; failed=1; fi
recorded=$(grep -oE 'record: [a-z0-9_:]+' infra/prometheus/rules.yml | cut -d ' ' -f 2 | sort -u)
used=$(printf '%s\n' "$rules" | grep -oE '[a-z_]+:aegis[a-z0-9_]*(:[a-z0-9_]+)?' | sort -u)
missing=$(comm -23 <(echo "$used") <(echo "$recorded"))
if [[ -n $missing ]]; then sed 's/^/used and not recorded: /' <<<"$missing" >&2; failed=1; fi
# The bound of the objective is a bucket.
grep -qE '^aegis_ingest_latency_seconds_bucket\{.*le="1"\}' <<<"$metrics" || { echo 'no bucket le="1"' >&2; failed=1; }
# Labels that queries sum by.
for label in lane component code le; do
  grep -q "^aegis_.*[{,]$label=" <<<"$metrics" || { echo "no metric has the label $label" >&2; failed=1; }
done
unused=$(comm -13 <(echo "$named" | sed -E 's/_(bucket|sum|count)$//' | sort -u) <(sed -E 's/_(bucket|sum|count)$//' <<<"$exported" | sort -u))
[[ -z $unused ]] || sed 's/^/exported, and neither in a rule nor on the dashboard: /' <<<"$unused"

# Numbers stand in for what Grafana fills in.
# shellcheck disable=SC2016
if type -P promtool >/dev/null; then
  check=$(mktemp -d)
  trap 'rm -rf "$check"' EXIT
  {
    echo 'groups: [{name: dashboard, rules: ['
    jq -r '.. | objects | .expr? // empty | strings' infra/grafana/dashboard.json | sed -e 's/\$__rate_interval/1m/g' -e 's/\$job/.+/g' |
      jq -Rc '{record: "dashboard:query\(input_line_number)", expr: .}' | sed 's/$/,/'
    echo ']}]'
  } >"$check/dashboard.yml"
  promtool check rules "$check/dashboard.yml" >/dev/null || failed=1
  promtool check metrics <<<"$metrics" || failed=1
fi
[[ $failed -eq 0 ]] && printf '%d metrics named, all exported\n' "$(wc -l <<<"$named")"
exit "$failed"
