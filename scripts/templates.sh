#!/usr/bin/env bash
# Prints the folder of the chat templates that the Python package trl ships (Apache-2.0), for tests that compare what they render.
# They are kept in $FOURBIT_MODELS (~/.cache/fourbit-models).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
models=${FOURBIT_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-models}
folder=$models/trl-1.16.0-chat-templates
if [[ ! -d $folder ]]; then
  python3 -m pip --version >/dev/null 2>&1 || "$here/setup.sh" package python3 python3-pip
  mkdir -p "$models"
  part=$(mktemp -d "$models/part.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  echo "templates: fetching trl's chat templates" >&2
  python3 -m pip download -q --no-deps --disable-pip-version-check -d "$part" trl==1.16.0 >&2
  python3 -m zipfile -e "$part"/trl-*.whl "$part"
  mv "$part/trl/chat_templates" "$folder"
fi
echo "$folder"
