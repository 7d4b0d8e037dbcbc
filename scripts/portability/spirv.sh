#!/usr/bin/env bash
# Validates SPIR-V files: spirv.sh TARGET LIST FIRST. LIST, FIRST and what is printed are as in hlsl.c.
set -euo pipefail
target=$1 list=$2 first=$3
while IFS=$'\t' read -r file _; do
  printf '%s\t' "$file"
  start=${EPOCHREALTIME/./}
  if said=$(spirv-val --target-env "$target" "$file" 2>&1); then result=passed; else result=failed; fi
  printf '%d\t%s\t%s\n' $(((${EPOCHREALTIME/./} - start) / 1000)) "$result" "$(tr '\n\t' '  ' <<<"$said")"
done < <(tail -n "+$((first + 1))" "$list")
