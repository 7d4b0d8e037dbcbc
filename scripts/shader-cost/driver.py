"""RADV, Mesa's Vulkan driver for AMD, compiling for a card that is not there ('null hardware').

Nothing can be submitted to such a device, and wgpu opens none; pipelines are made through plain Vulkan, with the features that
wgpu-hal switches on and that change what the compiler may do.
"""
import ctypes as C
import os

U, P, S, Text = C.c_uint32, C.c_void_p, C.c_size_t, C.c_char * 256
COMPUTE, UNIFORM, STORAGE = 32, 6, 7
BINDINGS = 16  # more than any kernel binds; the first holds the parameters
CAPTURE_STATISTICS_AND_TEXT = 0x40 | 0x80


def struct(**fields):
    """A structure as C lays it out. It begins with Vulkan's number for its type and the next of its chain, unless `typed` is false."""
    fields = {"s": U, "next": P, **fields} if fields.pop("typed", True) else fields
    return type("Struct", (C.Structure,), {"_fields_": list(fields.items())})


Application = struct(name=C.c_char_p, version=U, engine=C.c_char_p, engine_version=U, api=U)
Instance = struct(flags=U, app=P, layers=U, layer_names=P, extensions=U, extension_names=P)
Properties = struct(core=C.c_uint64 * 128)  # VkPhysicalDeviceProperties has 824 bytes
Driver = struct(id=U, name=Text, info=Text, conformance=U)
Features = struct(core=U * 55)  # VkPhysicalDeviceFeatures; robustBufferAccess is the first
Robustness = struct(buffers=U, images=U, null_descriptor=U)
Executables = struct(wanted=U)
Queue = struct(flags=U, family=U, count=U, priorities=P)
Device = struct(flags=U, queues=U, queue=P, layers=U, layer_names=P, extensions=U, extension_names=P, features=P)
Module = struct(flags=U, size=S, code=C.c_char_p)
Binding = struct(typed=False, binding=U, kind=U, count=U, stages=U, samplers=P)
SetLayout = struct(flags=U, count=U, bindings=P)
Layout = struct(flags=U, sets=U, set_layouts=P, pushes=U, push=P)
Stage = struct(flags=U, stage=U, module=P, name=C.c_char_p, specialization=P)
Pipeline = struct(flags=U, stage=Stage, layout=P, base=P, base_index=C.c_int32)
PipelineInfo = struct(pipeline=P)
Executable = struct(stages=U, name=Text, description=Text, subgroup_size=U)
ExecutableInfo = struct(pipeline=P, index=U)
Statistic = struct(name=Text, description=Text, format=U, value=C.c_uint64)
Representation = struct(name=Text, description=Text, is_text=U, size=S, data=P)


def check(what, code):
    if code != 0:
        raise OSError(f"{what}: VkResult {code}")


def listed(what, kind, call):
    """Vulkan's lists: first their length, then their items, each with the type `what` in it."""
    count = U(0)
    check("length", call(C.byref(count), None))
    items = (kind * count.value)(*[kind(s=what) for _ in range(count.value)])
    check("items", call(C.byref(count), items))
    return items


class Card:
    """A device of RADV's for the family of cards: `navi21`, `navi31`, ..."""

    def __init__(self, family):
        os.environ["RADV_FORCE_FAMILY"] = family  # read when the devices are listed
        os.environ["MESA_SHADER_CACHE_DISABLE"] = "true"  # what comes from there has no text
        self.vk = C.CDLL("libvulkan.so.1")
        app = Application(0, None, None, 0, None, 0, 1 << 22 | 3 << 12)
        instance, count, physical = P(), U(1), P()
        self.call("CreateInstance", C.byref(Instance(1, None, 0, C.addressof(app))), None, C.byref(instance))
        self.call("EnumeratePhysicalDevices", instance, C.byref(count), C.byref(physical))
        driver = Driver(1000196000)
        properties = Properties(1000059001, C.addressof(driver))
        self.vk.vkGetPhysicalDeviceProperties2(physical, C.byref(properties))
        self.mesa = driver.info.decode()
        if driver.name != b"radv":
            raise OSError(f"the driver is {driver.name.decode()}, not radv")
        self.device = self.open(physical)
        self.layout = self.pipeline_layout()

    def call(self, name, *args):
        check(name, getattr(self.vk, f"vk{name}")(*args))

    def make(self, name, info):
        made = P()
        self.call(f"Create{name}", self.device, C.byref(info), None, C.byref(made))
        return made

    def open(self, physical):
        executables = Executables(1000269000, None, 1)
        robustness = Robustness(1000286000, C.addressof(executables), 1)
        features = Features(1000059000, C.addressof(robustness), (U * 55)(1))
        priority = C.c_float(1)
        queue = Queue(2, None, 0, 0, 1, C.addressof(priority))
        names = (C.c_char_p * 2)(b"VK_EXT_robustness2", b"VK_KHR_pipeline_executable_properties")
        info = Device(3, C.addressof(features), 0, 1, C.addressof(queue), 0, None, 2, C.addressof(names))
        device = P()
        self.call("CreateDevice", physical, C.byref(info), None, C.byref(device))
        return device

    def pipeline_layout(self):
        kinds = [UNIFORM] + [STORAGE] * (BINDINGS - 1)
        bindings = (Binding * BINDINGS)(*[Binding(i, kind, 1, COMPUTE) for i, kind in enumerate(kinds)])
        sets = self.make("DescriptorSetLayout", SetLayout(32, None, 0, BINDINGS, C.addressof(bindings)))
        return self.make("PipelineLayout", Layout(30, None, 0, 1, C.addressof(sets)))

    def extension(self, name, *args):
        self.vk.vkGetDeviceProcAddr.restype = P
        return C.CFUNCTYPE(C.c_int, *[P] * 4)(self.vk.vkGetDeviceProcAddr(self.device, name))(self.device, *args)

    def compile(self, code, entry):
        """The driver's statistics by name, lanes of a wave among them, and the disassembly."""
        module = self.make("ShaderModule", Module(16, None, 0, len(code), code))
        stage = Stage(18, None, 0, COMPUTE, module, entry.encode())
        info, pipeline = Pipeline(29, None, CAPTURE_STATISTICS_AND_TEXT, stage, self.layout, None, -1), P()
        self.call("CreateComputePipelines", self.device, P(), 1, C.byref(info), None, C.byref(pipeline))
        try:
            return self.statistics(pipeline), self.disassembly(pipeline)
        finally:
            self.vk.vkDestroyPipeline(self.device, pipeline, None)
            self.vk.vkDestroyShaderModule(self.device, module, None)

    def statistics(self, pipeline):
        info, which = PipelineInfo(1000269001, None, pipeline), ExecutableInfo(1000269003, None, pipeline, 0)
        name = b"vkGetPipelineExecutable%sKHR"
        made = listed(1000269002, Executable, lambda *to: self.extension(name % b"Properties", C.addressof(info), *to))
        found = listed(1000269004, Statistic, lambda *to: self.extension(name % b"Statistics", C.addressof(which), *to))
        return {"Lanes": made[0].subgroup_size, **{one.name.decode(): one.value for one in found}}

    def disassembly(self, pipeline):
        which = ExecutableInfo(1000269003, None, pipeline, 0)
        texts = (Representation * 8)(*[Representation(1000269005) for _ in range(8)])
        count = U(8)
        ask = C.addressof(which), C.byref(count), texts
        self.extension(b"vkGetPipelineExecutableInternalRepresentationsKHR", *ask)
        wanted = next(one for one in texts if one.name == b"Assembly")
        text = C.create_string_buffer(wanted.size)
        wanted.data = C.addressof(text)
        self.extension(b"vkGetPipelineExecutableInternalRepresentationsKHR", *ask)  # the other texts have no room, and it says so
        return text.value.decode()
