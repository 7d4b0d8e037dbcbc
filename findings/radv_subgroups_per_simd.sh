#!/usr/bin/env bash
# RADV's statistic "Subgroups per SIMD" says twice as many waves as an RDNA 2 SIMD has slots for, where waves have 64 lanes.
#
# One would guess: VK_KHR_pipeline_executable_properties' "Subgroups per SIMD" is the occupancy that profilers show, waves that a SIMD holds at
# once, 16 at most on RDNA 2 and 3; and of one shader compiled for waves of 64 and of 32 lanes, the former has fewer or as many, since each of
# its waves takes twice the registers.
# What is real: the number is of waves of 32 lanes whatever the shader's waves are. A small kernel is said to have 32 of its waves of 64 on a
# SIMD of navi21, and 16 of its waves of 32; so a table that sets both side by side, or beside another driver's, is wrong by a factor of two.
#
# Seen 2026-11-29: Mesa 25.0.7 (Debian 12's backports), navi21 and navi31, nothing of which needs a card: RADV compiles for "null hardware".
# Needs Debian 12 on x86-64 with root, python3. Packages are unpacked into a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libvulkan1 mesa-vulkan-drivers glslang-tools python3 >/dev/null
mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1 || true)
mkdir -p "$place"/lists/partial "$place"/archives/partial
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-https://deb.debian.org/debian} bookworm-backports main" >"$place/list"
options=(-o "Dir::Etc::sourcelist=$place/list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::Lists=$place/lists" -o "Dir::Cache=$place" -o APT::Sandbox::User=root)
apt-get "${options[@]}" update -qq
(cd "$place" && apt-get "${options[@]}" download -qq -t bookworm-backports mesa-vulkan-drivers libdrm2 libdrm-amdgpu1 && for deb in ./*.deb; do dpkg -x "$deb" mesa; done)
lib=$place/mesa/usr/lib/x86_64-linux-gnu
echo "{\"file_format_version\":\"1.0.0\",\"ICD\":{\"library_path\":\"$lib/libvulkan_radeon.so\",\"api_version\":\"1.4.305\"}}" >"$place/radv.json"
export VK_ICD_FILENAMES=$place/radv.json LD_LIBRARY_PATH=$lib MESA_SHADER_CACHE_DISABLE=1
cat >"$place/add.comp" <<'GLSL'
#version 450
layout(local_size_x = 256) in;
layout(std430, set = 0, binding = 0) buffer Y { float y[]; };
void main() { y[gl_GlobalInvocationID.x] += 1.0; }
GLSL
glslangValidator --quiet -V --target-env vulkan1.1 -o "$place/add.spv" "$place/add.comp"

cat >"$place/ask.py" <<'PY'
import ctypes as C, sys

U, P, S, V = C.c_uint32, C.c_void_p, C.c_size_t, C.CDLL("libvulkan.so.1")
def struct(**f): return type("T", (C.Structure,), {"_fields_": [("s", U), ("n", P), *f.items()]})
def plain(**f): return type("T", (C.Structure,), {"_fields_": list(f.items())})
def ok(code): assert code == 0, code
def made(call, *info):
    handle = P()
    ok(call(*info, None, C.byref(handle)))
    return handle

app = struct(name=C.c_char_p, v=U, engine=C.c_char_p, ev=U, api=U)(0, None, b"a", 1, b"a", 1, (1 << 22) | (3 << 12))
instance = made(V.vkCreateInstance, C.byref(struct(f=U, app=P, l=U, ln=P, e=U, en=P)(1, None, 0, C.addressof(app), 0, None, 0, None)))
count, cards = U(1), (P * 1)()
V.vkEnumeratePhysicalDevices(instance, C.byref(count), cards)
feature = struct(on=U)(1000269000, None, 1)  # pipelineExecutableInfo
one = C.c_float(1)
queue = struct(f=U, family=U, count=U, p=P)(2, None, 0, 0, 1, C.addressof(one))
names = (C.c_char_p * 1)(b"VK_KHR_pipeline_executable_properties")
info = struct(f=U, q=U, qs=P, l=U, ln=P, e=U, en=P, features=P)(3, C.addressof(feature), 0, 1, C.addressof(queue), 0, None, 1, C.cast(names, P), None)
device = made(V.vkCreateDevice, P(cards[0]), C.byref(info))
code = open(sys.argv[1], "rb").read()
module = made(V.vkCreateShaderModule, device, C.byref(struct(f=U, pad=U, size=S, code=C.c_char_p)(16, None, 0, 0, len(code), code)))
binding = plain(b=U, kind=U, count=U, stages=U, samplers=P)(0, 7, 1, 32, None)
sets = (P * 1)(made(V.vkCreateDescriptorSetLayout, device, C.byref(struct(f=U, count=U, b=P)(32, None, 0, 1, C.addressof(binding)))))
layout = made(V.vkCreatePipelineLayout, device, C.byref(struct(f=U, sets=U, s2=P, pushes=U, p=P)(30, None, 0, 1, C.cast(sets, P), 0, None)))
Stage = struct(f=U, stage=U, module=P, name=C.c_char_p, special=P)
stage = Stage(18, None, 0, 32, module, b"main", None)
info = struct(f=U, pad=U, stage=Stage, layout=P, base=P, index=C.c_int32)(29, None, 0x40, 0, stage, layout, None, -1)
pipeline = P()
ok(V.vkCreateComputePipelines(device, None, 1, C.byref(info), None, C.byref(pipeline)))
V.vkGetDeviceProcAddr.restype = P
def of_device(name, *types): return C.CFUNCTYPE(C.c_int, *types)(V.vkGetDeviceProcAddr(device, name))
about = struct(pipeline=P)(1000269001, None, pipeline)
Executable = struct(stages=U, name=C.c_char * 256, about=C.c_char * 256, size=U)
found = Executable(1000269002, None)
of_device(b"vkGetPipelineExecutablePropertiesKHR", P, P, P, P)(device, C.addressof(about), C.addressof(U(1)), C.addressof(found))
which = struct(pipeline=P, index=U)(1000269003, None, pipeline, 0)
Statistic = struct(name=C.c_char * 256, about=C.c_char * 256, kind=U, pad=U, value=C.c_uint64)
count = U(64)
numbers = (Statistic * 64)(*[Statistic(1000269004, None) for _ in range(64)])
of_device(b"vkGetPipelineExecutableStatisticsKHR", P, P, P, P)(device, C.addressof(which), C.addressof(count), C.addressof(numbers))
said = {number.name.decode(): number.value for number in numbers[: count.value]}
print(found.size, said["Subgroups per SIMD"], said["VGPRs"])
PY
status=0
for card in navi21 navi31; do
  for wave in 64 32; do
    perftest=$([[ $wave == 32 ]] && echo cswave32 || true)
    read -r lanes waves registers < <(RADV_FORCE_FAMILY=$card RADV_PERFTEST=$perftest python3 "$place/ask.py" "$place/add.spv" 2>/dev/null)
    echo "$card: waves of $lanes lanes, $registers VGPRs: $waves subgroups per SIMD, by RADV"
    [[ $lanes == "$wave" && $waves == $((wave / 2)) ]] || status=1
  done
done
dpkg-deb -f "$(ls "$place"/mesa-vulkan-drivers_*.deb)" Version
((status == 0)) && echo "as described: 32 waves of 64 lanes on a SIMD with room for 16" || echo "changed"
exit $status
