#!/usr/bin/env bash
# Installs what fourbit needs beside Rust, and prints the environment to set:
#
#   eval "$(scripts/setup.sh)"              a Vulkan driver: the GPU's own, or Mesa's lavapipe where there is no GPU
#   eval "$(scripts/setup.sh swiftshader)"  SwiftShader: a second, independent software driver, which the tests use
#   eval "$(scripts/setup.sh lavapipe)"     lavapipe, whether or not there is a GPU
#   eval "$(scripts/setup.sh radv)"         RADV, AMD's driver: with RADV_FORCE_FAMILY it compiles for a card that is not there
#   scripts/setup.sh package NAME...        Debian packages, where they are missing
#
# Made for Debian 12 and its relatives; on macOS, Windows and where a driver was chosen already (VK_ICD_FILENAMES or
# VK_DRIVER_FILES) it does nothing. Drivers are unpacked into $FOURBIT_DRIVERS (~/.cache/fourbit-drivers) and replace
# nothing of the system's. Messages go to stderr.
set -euo pipefail
drivers=${FOURBIT_DRIVERS:-${XDG_CACHE_HOME:-$HOME/.cache}/fourbit-drivers}

note() { echo "setup: $*" >&2; }
say() { printf 'export %s=%q\n' "$1" "$2"; }
root() {
  if [[ $(id -u) == 0 ]]; then "$@"; return; fi
  command -v sudo >/dev/null || { note "not root and no sudo: please run as root: $*"; return 1; }
  sudo "$@"
}
quietly() { # run, and show the output only where it fails
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1; then cat "$log" >&2; rm -f "$log"; return 1; fi
  rm -f "$log"
}

has_package() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
refresh() { # lists older than half a day may name files that the mirror no longer has
  [[ -n $(find /var/lib/apt/lists -name '*Packages*' -mmin -720 2>/dev/null | head -n 1) ]] || quietly root apt-get update
}
package() {
  local name missing=()
  for name; do has_package "$name" || missing+=("$name"); done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || { note "please install: ${missing[*]}"; return 1; }
  note "installing ${missing[*]}"
  refresh
  quietly root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

# A render node of a driver that Mesa or NVIDIA has a Vulkan driver for. Virtual adapters (virtio, vmwgfx, ...) have none.
has_gpu() {
  local node
  for node in /sys/class/drm/renderD*/device/driver; do
    case $(basename "$(readlink -f "$node")") in amdgpu | i915 | xe | msm | v3d | panfrost | panthor | asahi) return 0 ;; esac
  done
  [[ -e /dev/nvidia0 ]] || return 1
  compgen -G '/usr/share/vulkan/icd.d/nvidia*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/nvidia*.json' >/dev/null
}

# The mirror this machine uses, to ask it for the backports.
mirror() {
  { sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources
    sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' /etc/apt/sources.list; } 2>/dev/null | grep -v security | head -n 1
}
backports() { # NAME...: downloaded with an apt state of its own and unpacked into $drivers/mesa
  local state=$drivers/apt deb
  mkdir -p "$state"/{lists/partial,cache/archives/partial}
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm-backports main\n' "$(mirror)" >"$state/list"
  local options=(-o "Dir::Etc::sourcelist=$state/list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$state/lists"
    -o "Dir::Cache=$state/cache" -o APT::Sandbox::User=root)
  quietly apt-get "${options[@]}" update || return 1
  (cd "$state/cache" && quietly apt-get "${options[@]}" download -t bookworm-backports "$@") || return 1
  for deb in "$state"/cache/*.deb; do dpkg -x "$deb" "$drivers/mesa.part" || return 1; done
  rm -rf "$state" "$drivers/mesa" && mv "$drivers/mesa.part" "$drivers/mesa"
}

# Mesa's Vulkan driver of that file name (lvp, radeon): Mesa 25's where Debian 12 is, else the system's.
mesa() {
  package libvulkan1 mesa-vulkan-drivers # the second brings the libraries that the backport needs, LLVM among them
  local library system manifest=$drivers/$1.json
  library=$(compgen -G "$drivers/mesa/usr/lib/*/libvulkan_$1.so" || true)
  if [[ -z $library ]] && grep -qs '^VERSION_ID="12"' /etc/os-release; then
    note "unpacking Mesa 25 into $drivers"
    mkdir -p "$drivers"
    backports mesa-vulkan-drivers libdrm2 libdrm-amdgpu1 || note "no backports: staying with Debian's older Mesa, which is slower"
    library=$(compgen -G "$drivers/mesa/usr/lib/*/libvulkan_$1.so" || true)
  fi
  if [[ -z $library ]]; then
    system=$(compgen -G "/usr/share/vulkan/icd.d/$1_icd*.json" | head -n 1) || { note "no Mesa driver called $1"; return 1; }
    say VK_ICD_FILENAMES "$system"
    return
  fi
  [[ -e $manifest ]] ||
    printf '{"file_format_version":"1.0.0","ICD":{"library_path":"%s","api_version":"1.4.305"}}\n' "$library" >"$manifest"
  say VK_ICD_FILENAMES "$manifest"
  say LD_LIBRARY_PATH "${library%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

swiftshader() { # Debian's chromium-common carries it; two files of the package are kept
  package libvulkan1
  local icd=$drivers/swiftshader/usr/lib/chromium/vk_swiftshader_icd.json
  if [[ ! -e $icd ]]; then
    note "unpacking SwiftShader into $drivers"
    refresh
    local part=$drivers/swiftshader.part
    rm -rf "$part" && mkdir -p "$part"
    (cd "$part" && quietly apt-get -o APT::Sandbox::User=root download chromium-common &&
      dpkg --fsys-tarfile ./chromium-common_*.deb | tar -x --wildcards '*vk_swiftshader*' && rm -f ./*.deb)
    rm -rf "$drivers/swiftshader" && mv "$part" "$drivers/swiftshader"
  fi
  say VK_ICD_FILENAMES "$icd"
}

linker() { command -v cc >/dev/null || package gcc libc6-dev; }

[[ $(uname -s) == Linux ]] || exit 0
case ${1:-} in
'')
  linker
  [[ -z ${VK_ICD_FILENAMES:-}${VK_DRIVER_FILES:-} ]] || exit 0
  if has_gpu; then package libvulkan1 mesa-vulkan-drivers; else mesa lvp; fi ;;
lavapipe) linker; mesa lvp ;;
radv) mesa radeon ;;
swiftshader) linker; swiftshader ;;
package) shift; package "$@" ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
