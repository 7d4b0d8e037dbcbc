#!/usr/bin/env bash
# What each shader variant that a GPU is given costs on two AMD cards that need not be there, by the compiler of RADV, Mesa's driver:
#
#   scripts/shader-cost.sh           all variants: writes docs/shader-cost.tsv and the table in docs/shader-cost.md
#   scripts/shader-cost.sh --check   a few variants, compared with that file (scripts/test.sh)
#
# It installs RADV and Python where they are missing (scripts/setup.sh). For Linux on x86-64. The check is skipped, and says so, where
# there is no RADV or another version of Mesa than the file was made with.
set -euo pipefail
cd "$(dirname "$0")/.."

note() { echo "shader-cost: $*" >&2; }
unable() { # REASON: no failure for the check
  [[ $mode == --check ]] || { note "$1"; exit 1; }
  note "skipped: $1"
  exit 0
}
case ${1:-} in '' | --check) mode=${1:-} ;; *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
[[ $(uname -sm) == "Linux x86_64" ]] || unable "RADV compiles on Linux on x86-64 here"
command -v python3 >/dev/null || scripts/setup.sh package python3 || unable "no Python"
environment=$(scripts/setup.sh radv) || unable "no RADV"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo run --release --quiet --example write_shaders -- "$work" spirv_1_6 >&2
eval "$environment"
unset VK_DRIVER_FILES # the loader prefers it
python3 -B scripts/shader-cost/table.py "$work/spirv_1_6.list" ${mode:+"$mode"}
