#!/usr/bin/env bash
# DXC 1.9 refuses a buffer named `dx` in every shader model; FXC takes it.
#
# One would guess: `dx` is no keyword and no reserved word of HLSL, so a buffer may be called so, as gradients are. Names that
# newer shader models bring would be found in those models alone.
#
# What is real: DXC 1.9 declares a namespace `dx` (for the objects of shader model 6.9) before it reads any file, cs_6_0 included.
# A global of that name is a "redefinition as different kind of symbol". naga 30, which renames what is reserved in HLSL, does
# not know the word, so WGSL with `var<storage> dx` passes it and fails on Windows.
#
# Versions: DXC 1.9.0.5517 and d3dcompiler_47 out of the npm package webgpu 0.6.2, under Debian 12's wine64. 2026-11-28.
# Needs npm, wine64 and x86_64-w64-mingw32-gcc (`scripts/setup.sh package wine64 gcc-mingw-w64-x86-64-win32`), on x86-64.
# Everything else is installed in a temporary folder. Ends with an error once DXC changes.
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

for name in dx dw; do
  cat >"$name.hlsl" <<HLSL
RWByteAddressBuffer $name : register(u0);
[numthreads(1, 1, 1)]
void main(uint3 at : SV_DispatchThreadID) {
  $name.Store(0, at.x);
}
HLSL
done
"$wine" hlsl.exe fxc cs_5_1 32 /dev/null 0 2>/dev/null # makes wine's folder
echo "DXC $(tr -d '\0' <dxcompiler.dll | grep -aoE '1\.9\.[0-9]+\.[0-9]+' | sort -u | tr '\n' ' ')"
changed=0
expect() { # passed|failed fxc|dxc PROFILE NAME
  local seen
  printf '%s.hlsl\tmain\n' "$4" >list
  seen=$("$wine" hlsl.exe "$2" "$3" 32 list 0)
  echo "$2 $3, a buffer named $4: $(cut -f3- <<<"$seen" | cut -c -120)"
  [[ $(cut -f3 <<<"$seen") == "$1" ]] || { echo "changed: $1 was expected"; changed=1; }
}
expect passed fxc cs_5_1 dx
expect failed dxc cs_6_0 dx
expect failed dxc cs_6_6 dx
expect passed dxc cs_6_0 dw
expect passed dxc cs_6_6 dw
exit $changed
