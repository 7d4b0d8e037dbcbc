#!/usr/bin/env bash
# Fuzzes what is read from files: scripts/fuzz.sh [TARGET] [SECONDS]; without a target each of them, 60 seconds long.
#
# Targets are those of tests/fuzzing. Installs what is missing: cargo-fuzz where there is a nightly compiler, else AFL++ (cargo-afl).
# Inputs begin with fuzz/corpus/TARGET and grow in target/fuzz-inputs/TARGET. What ends a process, or takes more than 10 seconds or
# a gigabyte, is a find: it ends the run, and lies minimised in target/fuzz-finds/TARGET. A find goes to fuzz/corpus/TARGET with its
# fix, unless it harms other programs too: then it is described in words, and the guard tested with something harmless.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${2:-60} memory=1024 timeout=10 longest=4096
targets=("${1:-}")
[[ -n ${1:-} ]] || mapfile -t targets < <(cd fuzz/targets && printf '%s\n' *.rs | sed 's/\.rs$//')
for target in "${targets[@]}"; do
  [[ -f fuzz/targets/$target.rs ]] || { echo "fuzz: no target $target; there are" fuzz/targets/*.rs >&2; exit 2; }
done
export CARGO_TARGET_DIR=$PWD/target/fuzz CARGO_INCREMENTAL=0
# Files are made of every input: in memory where that can be.
[[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm

libfuzzer() { # TARGET
  local program inputs=target/fuzz-inputs/$1 finds=target/fuzz-finds/$1 find seeds=fuzz/corpus/$1
  program=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release/$1
  mkdir -p "$inputs" "$finds"
  if "$program" "$inputs" "$seeds" -max_total_time="$seconds" -timeout=$timeout -rss_limit_mb=$memory -max_len=$longest -len_control=0 \
    -artifact_prefix="$finds/" -print_final_stats=1; then return; fi
  for find in "$finds"/{crash,oom,timeout}-*; do
    [[ -f $find && ! -f $finds/minimised-${find##*-} ]] || continue
    # What hangs or fills the memory is as small as it was found.
    cp "$find" "$finds/minimised-${find##*-}"
    [[ $find != */crash-* ]] || "$program" "$find" -minimize_crash=1 -max_total_time=30 -timeout=$timeout -rss_limit_mb=$memory \
      -exact_artifact_path="$finds/minimised-${find##*-}" >/dev/null 2>&1 || true
    echo "fuzz: $finds/minimised-${find##*-}" >&2
  done
  return 1
}

afl() { # TARGET
  local inputs=target/fuzz-inputs/$1-afl finds=target/fuzz-finds/$1 program=$CARGO_TARGET_DIR/release/$1 find found=0
  mkdir -p "$inputs" "$finds"
  AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 AFL_AUTORESUME=1 \
    cargo afl fuzz -i "fuzz/corpus/$1" -o "$inputs" -V "$seconds" -t $((timeout * 1000)) -m none -G $longest "$program"
  for find in "$inputs"/default/{crashes,hangs}/id*; do
    [[ -f $find ]] || continue
    found=1
    cargo afl tmin -i "$find" -o "$finds/minimised-$(basename "$find")" -t $((timeout * 1000)) -m none -- "$program" >/dev/null ||
      cp "$find" "$finds/minimised-$(basename "$find")"
    echo "fuzz: $finds/minimised-$(basename "$find")" >&2
  done
  return $found
}

if rustc +nightly --version >/dev/null 2>&1; then
  cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz
  # The library has no unsafe code beside mapping and shaders: memory is bounded by the allocator, and no sanitizer slows the run.
  for target in "${targets[@]}"; do cargo +nightly fuzz build --sanitizer "${SANITIZER:-none}" "$target"; done
  fuzz=libfuzzer
else
  cargo afl --version >/dev/null 2>&1 || cargo install cargo-afl
  cargo afl config --build >/dev/null 2>&1 || true
  for target in "${targets[@]}"; do
    cargo afl build --release --manifest-path fuzz/Cargo.toml --no-default-features --features afl --bin "$target"
  done
  fuzz=afl
fi
failed=()
for target in "${targets[@]}"; do
  echo "fuzz: $target for $seconds seconds" >&2
  $fuzz "$target" || failed+=("$target")
done
((!${#failed[@]})) || { echo "fuzz: finds in ${failed[*]}" >&2; exit 1; }
