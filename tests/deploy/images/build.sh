#!/bin/bash
# Stand-ins for the images that docker-compose.yml names, for machines that can pull none: the same programs at Debian 13's versions
# and the chromadb wheel, with the users, folders, entrypoints and shells that the official images have, as far as docker-compose.yml
# relies on them. The app's image holds the binary given and the libraries it needs, and no shell.
#   tests/deploy/images/build.sh PATH-OF-AEGIS-INGEST | image:NAME
# Images that are really there are left alone: a stand-in is told by its label.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
repo=$(cd "$here/../../.." && pwd)
aegis=${1:?PATH-OF-AEGIS-INGEST}
work=$repo/target/deploy/images
mkdir -p "$work"
label=aegis.stand-in
"$repo/infra/local/stack" install
extra=$("$repo/tests/deploy/tools.sh" debian busybox-static bash-static nginx libpcre2-8-0 libssl3t64 libcrypt1 zlib1g libzstd1 prometheus promtool)
root=${AEGIS_STACK_DIR:-$repo/.stack}/root

# Rebuilt when what it is made of changes.
stamp=$(cat "$root/.stamp" "$here"/* "$repo/tests/deploy/tools.sh" | sha256sum | cut -c 1-16)
base=aegis-stand-in-base:$stamp
if ! docker image inspect "$base" >/dev/null 2>&1; then
  tree=$work/base
  rm -rf "$tree"
  mkdir -p "$tree"
  tar -C "$root" -c --exclude=./data --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./tmp --exclude=./boot . | tar -C "$tree" -x --no-same-owner
  mkdir -p "$tree"/{dev,proc,sys,data,prometheus,run/postgresql,var/lib/postgresql/data,var/log/nginx,var/lib/nginx,docker-entrypoint-initdb.d}
  mkdir "$tree/tmp" && chmod 1777 "$tree/tmp"
  cp -a "$extra"/usr/bin/{busybox,bash-static,prometheus,promtool} "$extra/usr/sbin/nginx" "$tree/usr/bin/"
  cp -a "$extra"/usr/lib/*-linux-gnu/lib{pcre2-8,ssl,crypto,crypt,z,zstd}.so.* "$tree"/usr/lib/*-linux-gnu/
  ln -sf bash-static "$tree/usr/bin/bash"
  for tool in sed awk grep wget; do ln -sf busybox "$tree/usr/bin/$tool"; done
  [[ -e $tree/var/run ]] || ln -s /run "$tree/var/run"
  printf '%s\n' root:x:0:0::/root:/bin/sh postgres:x:70:70::/var/lib/postgresql:/bin/sh redis:x:999:1000::/data:/bin/sh \
    nginx:x:101:101::/:/bin/false nobody:x:65534:65534::/:/bin/false >"$tree/etc/passwd"
  printf '%s\n' root:x:0: postgres:x:70: redis:x:1000: nginx:x:101: nobody:x:65534: >"$tree/etc/group"
  rm -f "$tree/etc/resolv.conf" "$tree/etc/hosts"
  cp "$here/postgres-entrypoint.sh" "$tree/usr/local/bin/docker-entrypoint.sh"
  tar -C "$tree" --numeric-owner --owner=0 --group=0 -c . | docker import --change "LABEL $label=base" - "$base" >/dev/null
  rm -rf "$tree"
fi

make() { # IMAGE: the Dockerfile comes by standard input
  local image=$1 found
  found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || echo none)
  case $found in
    none | *"$stamp"*) ;;
    '' | '<no value>') echo "$image is there already and no stand-in: left alone"; return ;;
  esac
  [[ $found == "$stamp" ]] || DOCKER_BUILDKIT=0 docker build -q --label "$label=$stamp" -t "$image" - >/dev/null 2>&1
  echo "$image stands in"
}
image() { sed -n "s|^ *image: \(.*$1.*\)|\1|p" "$repo/docker-compose.yml" | head -n 1; }
pg=/usr/lib/postgresql/17/bin

make "$(image redis:)" <<END
FROM $base
RUN ["chown", "999:1000", "/data"]
ENTRYPOINT ["redis-server"]
END
make "$(image timescale/)" <<END
FROM $base
RUN ["/bin/sh", "-c", "chown 70:70 /var/lib/postgresql/data /run/postgresql && chmod 1777 /var/lib/postgresql/data"]
ENV PATH=$pg:/usr/local/bin:/usr/bin PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
STOPSIGNAL SIGINT
END
make "$(image chromadb/)" <<END
FROM $base
ENTRYPOINT ["chroma"]
CMD ["run", "/config.yaml"]
END
make "$(image prom/)" <<END
FROM $base
RUN ["chown", "65534:65534", "/prometheus"]
ENTRYPOINT ["prometheus"]
END
make "$(image nginx:)" <<END
FROM $base
CMD ["nginx", "-g", "daemon off;"]
STOPSIGNAL SIGQUIT
END

tag=aegis-ingest:${STACK_VERSION:-0.1.0}
if [[ $aegis == image:* ]]; then
  docker tag "${aegis#image:}" "$tag"
  echo "$tag is ${aegis#image:}"
  exit
fi
aegis=$(readlink -f "$aegis")
# The app as its Dockerfile makes it: the program, its libraries, certificates, a user, and nothing to run beside it.
app=$work/app
rm -rf "$app"
mkdir -p "$app/usr/local/bin" "$app/etc/ssl/certs" "$app/home/nonroot" "$app/tmp"
install -m 755 "$aegis" "$app/usr/local/bin/aegis-ingest"
strip "$app/usr/local/bin/aegis-ingest" 2>/dev/null || true
ldd "$aegis" | grep -oE '/[^ ]+' | while read -r library; do install -D -m 755 "$(readlink -f "$library")" "$app$library"; done
cp -L /etc/ssl/certs/ca-certificates.crt "$app/etc/ssl/certs/"
echo nonroot:x:65532:65532::/home/nonroot:/sbin/nologin >"$app/etc/passwd"
tar -C "$app" --numeric-owner --owner=0 --group=0 -c . | docker import --change "LABEL $label=$stamp" --change 'USER 65532:65532' \
  --change 'ENV AEGIS_HTTP_ADDR=0.0.0.0:9464' --change 'ENTRYPOINT ["/usr/local/bin/aegis-ingest"]' --change 'CMD ["run"]' - "$tag" >/dev/null
rm -rf "$app"
echo "$tag stands in, with $aegis"
