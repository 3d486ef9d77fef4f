#!/bin/bash
# The Dockerfile as it is, built on a real engine, and what comes out of it looked at:
#   tests/deploy/image.sh [classic | buildkit]…     both builders unless one is named; RELEASE=1: optimised as it is released
# Where no registry is, its base images are stand-ins: Debian 13's packages with this machine's Rust toolchain, and glibc with
# certificates and nothing to run. The crates come from crates.io, or from this machine's cache. Leaves the image aegis-ingest:built.
# Without an engine it says so and ends with status 77.
# shellcheck disable=SC2015 # `ok` does not fail
set -euo pipefail
self=$(readlink -f "$0")
here=$(dirname "$(readlink -f "$0")")
repo=$(cd "$here/../.." && pwd)
cd "$repo"
if ! docker info >/dev/null 2>&1; then
  echo '######## NOT TESTED: the Dockerfile. No Docker engine answers here. ########' >&2
  exit 77
fi
[[ $# -gt 0 ]] || set -- classic buildkit
label=aegis.stand-in
work=$(mktemp -d)
container=aegis-image-$$
clean() {
  local status=$?
  docker rm -f "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM
began=$SECONDS passed=0
ok() { passed=$((passed + 1)); printf '  ok  %4d s  %s\n' $((SECONDS - began)) "$1"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
missed() { fail "line ${BASH_LINENO[0]}: $(sed -n "${BASH_LINENO[0]}s/^ *//p" "$self")"; }

# ------------------------------------------------------------------------------------------------------- base images
mapfile -t bases < <(awk '/^FROM/ {print $2}' Dockerfile)
version=$(sed -n 's/^ARG RUST_VERSION=//p' Dockerfile)
rust=${bases[0]/\$\{RUST_VERSION\}/$version} runtime=${bases[1]}
[[ ${#bases[@]} -eq 2 && $rust == rust:*[0-9]* ]] || fail "this knows two base images, and the Dockerfile has: ${bases[*]}"
absent() { # the real image is left alone
  local found
  found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null) || return 0
  [[ $found != "$stamp" && $found == *stand-in:* ]]
}
ca=/etc/ssl/certs/ca-certificates.crt
sysroot=$(rustc --print sysroot)
# Raise the number when what is made below changes.
stamp=stand-in:1-$(cat "$here/tools.sh" <(rustc -vV) "$ca" | sha256sum | cut -c 1-16)
if absent "$rust"; then
  tree=$("$here/tools.sh" tree rust dash bash coreutils findutils sed gcc libc6-dev ca-certificates)
  ln -sf dash "$tree/usr/bin/sh"
  ln -sf gcc "$tree/usr/bin/cc"
  host=$(rustc -vV | sed -n 's/^host: //p')
  mapfile -t libraries < <(cd "$sysroot" && printf '%s\n' lib/*.so*)
  mkdir -p "$tree"/usr/local/{cargo/registry,rustup} "$tree"/{etc/ssl/certs,dev,proc,sys,tmp,root} && chmod 1777 "$tree/tmp"
  tar -C "$sysroot" -c bin/cargo bin/rustc lib/rustlib/"$host" "${libraries[@]}" | tar -C "$tree/usr/local/rustup" -x --no-same-owner
  cp -L "$ca" "$tree$ca"
  # What was fetched before need not be fetched again; nothing of it is in the final image.
  for part in registry/cache registry/index config.toml; do
    [[ ! -e ${CARGO_HOME:-$HOME/.cargo}/$part ]] || cp -a "${CARGO_HOME:-$HOME/.cargo}/$part" "$tree/usr/local/cargo/$part"
  done
  tar -C "$tree" --numeric-owner --owner=0 --group=0 -c . | docker import --change "LABEL $label=$stamp" --change 'ENV CARGO_HOME=/usr/local/cargo' \
    --change 'ENV PATH=/usr/local/rustup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$rust" >/dev/null
  rm -rf "$tree"
  echo "      $rust stands in, with $(rustc --version)"
fi
if absent "$runtime"; then
  tree=$("$here/tools.sh" tree runtime libc6 libgcc-s1)
  # The dynamic loader is the one program of glibc's package.
  find "$tree"/usr/bin "$tree"/usr/sbin ! -type d -delete
  mkdir -p "$tree"/{etc/ssl/certs,home/nonroot,tmp,dev,proc,sys} && chmod 1777 "$tree/tmp"
  cp -L "$ca" "$tree$ca"
  printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin >"$tree/etc/passwd"
  tar -C "$tree" --numeric-owner --owner=0 --group=0 -c . | docker import --change "LABEL $label=$stamp" --change 'USER 65532' --change 'WORKDIR /home/nonroot' - "$runtime" >/dev/null
  rm -rf "$tree"
  echo "      $runtime stands in"
fi
# A container's own network where it leads to the registry of crates, else the machine's.
network=default
docker run --rm "$rust" timeout 60 cargo info -q cargo-auditable >/dev/null 2>&1 || network=host

# ------------------------------------------------------------------------------------------------------------ builds
context=$work/context
mkdir "$context"
cp -r Cargo.toml Cargo.lock Dockerfile .dockerignore LICENSE migrations src "$context/"
echo secret >"$context/.env"
image=aegis-ingest:built
sooner=(--build-arg CARGO_PROFILE_RELEASE_OPT_LEVEL=0 --build-arg CARGO_PROFILE_RELEASE_LTO=off --build-arg CARGO_PROFILE_RELEASE_DEBUG=none)
[[ ! ${RELEASE-} ]] || sooner=()
build() { # BUILDER: the log goes to a file
  local command=(docker build) kit=0
  if [[ $1 == buildkit ]]; then
    kit=1
    if ! docker buildx version >/dev/null 2>&1; then
      mkdir -p "$work/docker/cli-plugins"
      ln -sf "$("$here/tools.sh" debian docker-buildx)/usr/libexec/docker/cli-plugins/docker-buildx" "$work/docker/cli-plugins/"
      export DOCKER_CONFIG=$work/docker
    fi
    command=(docker buildx build --builder default --progress plain --load)
  fi
  DOCKER_BUILDKIT=$kit timeout 1500 "${command[@]}" --network "$network" "${sooner[@]}" --build-arg VERSION=1.2.3 --build-arg REVISION=abc -t "$image" "$context" >"$work/log" 2>&1 ||
    { tail -n 30 "$work/log" >&2; fail "docker build ($1)"; }
}
cached() { # BUILDER: steps out of the cache
  if [[ $1 == buildkit ]]; then grep -c ' CACHED$' "$work/log"; else grep -c 'Using cache' "$work/log"; fi
}
config() { docker image inspect "$image" | jq -e ".[0].Config | $1" >/dev/null || fail "the image's $1"; }

for builder in "$@"; do
  from=$SECONDS
  build "$builder"
  first=$((SECONDS - from))
  ok "docker build ($builder): $first s$([[ $(cached "$builder") -lt 4 ]] || echo ', much of it out of an earlier cache')"
  # A change of the program alone builds the program alone.
  printf '\n// %s\n' "$RANDOM$RANDOM" >>"$context/src/main.rs"
  from=$SECONDS
  build "$builder"
  again=$((SECONDS - from))
  if grep -qE 'Compiling (tokio|rustls) v' "$work/log"; then fail "a change of src builds the dependencies again"; fi
  grep -q 'Compiling aegis-ingest v' "$work/log" || fail "a change of src does not build the program"
  [[ $(cached "$builder") -ge 4 ]] || fail "the layers of the dependencies do not come out of the cache"
  ok "a change of src: $again s, with the dependencies out of the cache"
done

# ------------------------------------------------------------------------------------------------- what comes out of it
config '.User == "65532:65532"' && config '.Entrypoint == ["/usr/local/bin/aegis-ingest"] and .Cmd == ["run"]'
config '.Healthcheck.Test == ["CMD", "/usr/local/bin/aegis-ingest", "healthcheck"]' && config '.ExposedPorts | has("9464/tcp")'
config '.Labels | (."org.opencontainers.image.version" == "1.2.3") and (."org.opencontainers.image.revision" == "abc") and (."org.opencontainers.image.licenses" == "Apache-2.0")
  and (."org.opencontainers.image.title" == "aegis-ingest") and has("org.opencontainers.image.description")'
ok "not root, labelled, with a health check of its own"
docker create --name "$container" "$image" >/dev/null
docker export "$container" >"$work/image.tar"
docker rm "$container" >/dev/null
tar -tf "$work/image.tar" >"$work/files"
[[ $(grep -cE '^usr/local/bin/.' "$work/files") -eq 1 ]] || fail "more than one program: $(grep -E '^usr/local/bin/.' "$work/files")"
if grep -E '(^|/)s?bin/(ba|da|a|z)?sh$|(^|/)s?bin/(busybox|apt|dpkg|cargo|rustc)$|(^|/)\.env$|\.rs$' "$work/files"; then fail "a shell, a package manager, sources or secrets are in the image"; fi
ok "no shell, no package manager, no sources"
tar -xf "$work/image.tar" -C "$work" usr/local/bin/aegis-ingest
# Scanners read the dependencies from this section (github.com/rust-secure-code/cargo-auditable).
objcopy -O binary --only-section=.dep-v0 --set-section-flags .dep-v0=alloc "$work/usr/local/bin/aegis-ingest" "$work/dependencies"
python3 - "$work/dependencies" Cargo.lock <<'PYTHON' || fail "the list of dependencies"
import json, sys, zlib, re
inside = {(p["name"], p["version"]) for p in json.loads(zlib.decompress(open(sys.argv[1], "rb").read()))["packages"]}
locked = set(re.findall(r'name = "(.*)"\nversion = "(.*)"', open(sys.argv[2]).read()))
assert len(inside) > 100 and inside <= locked, inside - locked
assert {"tokio", "rustls", "redis", "tokio-postgres"} <= {name for name, _ in inside}
PYTHON
ok "the list of dependencies is in the program, and is Cargo.lock's"
confined=(--rm --read-only --cap-drop ALL --security-opt no-new-privileges --network none)
[[ $(docker run "${confined[@]}" "$image" --version) == aegis-ingest* ]] && ok "it runs read-only and without capabilities" || missed
said=$(docker run "${confined[@]}" -e AEGIS_WRITERS=none "$image" 2>&1) && fail "a bad setting is taken"
[[ $said == *AEGIS_WRITERS* ]] && ok "and refuses a bad setting" || missed
docker run -d --name "$container" --health-interval 1s --health-start-period 1ms --health-retries 2 --read-only --network none "$image" >/dev/null
for ((i = 0; i < 60; i++)); do
  health=$(docker inspect -f '{{.State.Health.Status}}' "$container")
  [[ $health == starting ]] || break
  sleep 0.5
done
[[ $health == unhealthy && $(docker inspect -f '{{.State.Running}}' "$container") == true ]] || fail "without its stores it is $health"
ok "it waits for its stores, and is not healthy meanwhile"
docker stop -t 30 "$container" >/dev/null
[[ $(docker inspect -f '{{.State.ExitCode}}' "$container") == 0 ]] && ok "and ends with status 0 when asked to" || missed
printf '      %s MB\n' "$(($(docker image inspect -f '{{.Size}}' "$image") / 1000000))"
echo "$passed checks passed"
