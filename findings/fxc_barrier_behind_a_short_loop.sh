#!/usr/bin/env bash
# FXC refuses a barrier behind a loop that fills a tile of fewer elements than there are threads, if the loop has an `if`.
#
# One would guess: `for (i = lane; i < N; i += threads)` fills a tile of any size, and a barrier behind it is reached by all threads, whatever
# N is: the loop ends before it. Whether a kernel compiles should not depend on N.
#
# What is real: where N is below the number of threads, FXC unrolls the loop, since it turns at most once. If there is an `if` in
# its body, or a call that returns early, the barrier behind then counts as "found in varying flow control" (X3663), although both ended
# before. The same source with more elements than threads, or without the `if`, compiles. So does the loop with a bound that is the same for all
# threads and the comparison within, and so does all of it with DXC. A tile size that is tuned on another system can thus break DX12
# where no dxcompiler.dll is there; naga hands such loops on as they are.
#
# Versions: d3dcompiler_47 10.0.22621.2428 and DXC 1.9.0.5517 out of the npm package webgpu 0.6.2, under Debian 12's wine64. 2026-11-30.
# Needs npm, wine64 and x86_64-w64-mingw32-gcc (`scripts/setup.sh package wine64 gcc-mingw-w64-x86-64-win32`), on x86-64.
# Everything else is installed in a temporary folder. Ends with an error once FXC changes.
set -euo pipefail
driver=$(realpath "$(dirname "$0")/../scripts/portability/hlsl.c") # calls the compilers' libraries
here=$(mktemp -d)
wine=$(command -v wine64 || echo /usr/lib/wine/wine64)
trap '"${wine%64}server" -k || true; rm -rf "$here"' EXIT # its server would write into the folder later
cd "$here"
npm pack --silent webgpu@0.6.2 >/dev/null
tar -xzf webgpu-0.6.2.tgz --strip-components=3 package/dist/win32-x64
mingw=$(command -v x86_64-w64-mingw32-gcc || command -v x86_64-w64-mingw32-gcc-win32)
"$mingw" -o hlsl.exe "$driver"
export WINEPREFIX=$here/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml=;d3dcompiler_47=n'
"$wine" hlsl.exe fxc cs_5_1 32 /dev/null 0 2>/dev/null # makes wine's folder

changed=0
expect() { # passed|failed fxc|dxc PROFILE WHAT LOOP: of 256 threads, who fill a tile before a barrier
  local seen
  cat >kernel.hlsl <<HLSL
cbuffer Sizes : register(b0) { uint depth; }
StructuredBuffer<float> x : register(t0);
RWStructuredBuffer<float> y : register(u0);
groupshared float tile[512];
[numthreads(256, 1, 1)]
void main(uint lane : SV_GroupIndex) {
  float sum = 0;
  for (uint d = 0; d < depth; d += 512) {
    $5
    GroupMemoryBarrierWithGroupSync();
    sum += tile[lane];
    GroupMemoryBarrierWithGroupSync();
  }
  y[lane] = sum;
}
HLSL
  printf 'kernel.hlsl\tmain\n' >list
  seen=$("$wine" hlsl.exe "$2" "$3" 32 list 0)
  echo "$2 $3, $4: $(cut -f3- <<<"$seen" | cut -c -120)"
  [[ $(cut -f3 <<<"$seen") == "$1" ]] || { echo "changed: $1 was expected"; changed=1; }
}
body='float v = 0; if (d + i < depth) { v = x[d + i]; } tile[i] = v;'
few="for (uint i = lane; i < 128; i += 256) { $body }"
expect failed fxc cs_5_1 "128 elements, an if" "$few"
expect passed fxc cs_5_1 "512 elements, an if" "for (uint i = lane; i < 512; i += 256) { $body }"
expect passed fxc cs_5_1 "128 elements, no if" "for (uint i = lane; i < 128; i += 256) { tile[i] = x[d + i]; }"
expect passed fxc cs_5_1 "128 elements, a bound for all" "for (uint n = 0; n < 128; n += 256) { uint i = n + lane; if (i < 128) { $body } }"
expect passed dxc cs_6_0 "128 elements, an if" "$few"
exit $changed
