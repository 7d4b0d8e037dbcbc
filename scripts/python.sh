#!/usr/bin/env bash
# Prints the path of a Python that has the packages of scripts/requirements.txt: 3 GB, kept in $FOURBIT_VENV (~/.cache/fourbit-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${FOURBIT_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-venv}
if ! cmp -s scripts/requirements.txt "$venv/requirements.txt"; then
  echo "${0##*/}: installing Python packages into $venv" >&2
  python3 -c 'import ensurepip' 2>/dev/null || scripts/setup.sh package python3 python3-venv
  [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -r scripts/requirements.txt >&2
  cp scripts/requirements.txt "$venv/"
fi
echo "$venv/bin/python"
