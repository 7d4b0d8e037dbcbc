// A Vulkan layer that lets one call of one function fail, for tests/faults.
//
//   FAULT_POINT="vkQueueSubmit 3 -4"  the third vkQueueSubmit returns -4 (VK_ERROR_DEVICE_LOST) and is not passed on
//   FAULT_STAMPS=NAME                 what timestamps become where they are copied out of the first pool: see `lie`
//   FAULT_LOG=FILE                    gets `fired ...` as the fault happens, and `count FUNCTION N` at the end
//
// A device that was lost stays lost, as the specification has it: every later call that can say so does. It also has
// stopped, so that what its work used can be destroyed; the driver below knows of no loss and goes on, so the layer waits
// for it once before it says so. The layer adds no other call and keeps no state of the application beside the functions
// to pass on to: one instance and one device at a time.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))

// What fails: name, parameters, arguments, whether it can report a lost device, and what the outputs become.
#define DEVICE_FUNCTIONS(F)                                                                                             \
  F(QueueSubmit, (VkQueue q, uint32_t n, const VkSubmitInfo *s, VkFence f), (q, n, s, f), 1, )                          \
  F(QueueSubmit2, (VkQueue q, uint32_t n, const VkSubmitInfo2 *s, VkFence f), (q, n, s, f), 1, )                        \
  F(QueueWaitIdle, (VkQueue q), (q), 1, )                                                                               \
  F(DeviceWaitIdle, (VkDevice d), (d), 1, )                                                                             \
  F(WaitForFences, (VkDevice d, uint32_t n, const VkFence *f, VkBool32 a, uint64_t t), (d, n, f, a, t), 1, )            \
  F(GetFenceStatus, (VkDevice d, VkFence f), (d, f), 1, )                                                               \
  F(WaitSemaphores, (VkDevice d, const VkSemaphoreWaitInfo *i, uint64_t t), (d, i, t), 1, )                             \
  F(GetSemaphoreCounterValue, (VkDevice d, VkSemaphore s, uint64_t *v), (d, s, v), 1, )                                 \
  F(AllocateMemory, (VkDevice d, const VkMemoryAllocateInfo *i, const VkAllocationCallbacks *a, VkDeviceMemory *m),     \
    (d, i, a, m), 0, *m = VK_NULL_HANDLE)                                                                               \
  F(MapMemory, (VkDevice d, VkDeviceMemory m, VkDeviceSize o, VkDeviceSize s, VkMemoryMapFlags f, void **p),            \
    (d, m, o, s, f, p), 0, *p = NULL)                                                                                   \
  F(FlushMappedMemoryRanges, (VkDevice d, uint32_t n, const VkMappedMemoryRange *r), (d, n, r), 0, )                    \
  F(InvalidateMappedMemoryRanges, (VkDevice d, uint32_t n, const VkMappedMemoryRange *r), (d, n, r), 0, )               \
  F(BindBufferMemory, (VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize o), (d, b, m, o), 0, )                    \
  F(CreateBuffer, (VkDevice d, const VkBufferCreateInfo *i, const VkAllocationCallbacks *a, VkBuffer *b), (d, i, a, b), \
    0, *b = VK_NULL_HANDLE)                                                                                             \
  F(CreateSemaphore, (VkDevice d, const VkSemaphoreCreateInfo *i, const VkAllocationCallbacks *a, VkSemaphore *s),      \
    (d, i, a, s), 0, *s = VK_NULL_HANDLE)                                                                               \
  F(CreateQueryPool, (VkDevice d, const VkQueryPoolCreateInfo *i, const VkAllocationCallbacks *a, VkQueryPool *p),      \
    (d, i, a, p), 0, *p = VK_NULL_HANDLE)                                                                               \
  F(CreateShaderModule,                                                                                                 \
    (VkDevice d, const VkShaderModuleCreateInfo *i, const VkAllocationCallbacks *a, VkShaderModule *m), (d, i, a, m),   \
    0, *m = VK_NULL_HANDLE)                                                                                             \
  F(CreateComputePipelines,                                                                                             \
    (VkDevice d, VkPipelineCache c, uint32_t n, const VkComputePipelineCreateInfo *i, const VkAllocationCallbacks *a,   \
     VkPipeline *p),                                                                                                    \
    (d, c, n, i, a, p), 0, memset(p, 0, n * sizeof *p))                                                                 \
  F(CreatePipelineLayout,                                                                                               \
    (VkDevice d, const VkPipelineLayoutCreateInfo *i, const VkAllocationCallbacks *a, VkPipelineLayout *l),             \
    (d, i, a, l), 0, *l = VK_NULL_HANDLE)                                                                               \
  F(CreateDescriptorSetLayout,                                                                                          \
    (VkDevice d, const VkDescriptorSetLayoutCreateInfo *i, const VkAllocationCallbacks *a, VkDescriptorSetLayout *l),   \
    (d, i, a, l), 0, *l = VK_NULL_HANDLE)                                                                               \
  F(CreateDescriptorPool,                                                                                               \
    (VkDevice d, const VkDescriptorPoolCreateInfo *i, const VkAllocationCallbacks *a, VkDescriptorPool *p),             \
    (d, i, a, p), 0, *p = VK_NULL_HANDLE)                                                                               \
  F(AllocateDescriptorSets, (VkDevice d, const VkDescriptorSetAllocateInfo *i, VkDescriptorSet *s), (d, i, s), 0,       \
    memset(s, 0, i->descriptorSetCount * sizeof *s))                                                                    \
  F(FreeDescriptorSets, (VkDevice d, VkDescriptorPool p, uint32_t n, const VkDescriptorSet *s), (d, p, n, s), 0, )      \
  F(CreateCommandPool, (VkDevice d, const VkCommandPoolCreateInfo *i, const VkAllocationCallbacks *a, VkCommandPool *p),\
    (d, i, a, p), 0, *p = VK_NULL_HANDLE)                                                                               \
  F(ResetCommandPool, (VkDevice d, VkCommandPool p, VkCommandPoolResetFlags f), (d, p, f), 0, )                         \
  F(AllocateCommandBuffers, (VkDevice d, const VkCommandBufferAllocateInfo *i, VkCommandBuffer *b), (d, i, b), 0,       \
    memset(b, 0, i->commandBufferCount * sizeof *b))                                                                    \
  F(BeginCommandBuffer, (VkCommandBuffer b, const VkCommandBufferBeginInfo *i), (b, i), 0, )                            \
  F(EndCommandBuffer, (VkCommandBuffer b), (b), 0, )

#define INSTANCE_FUNCTIONS(F)                                                                                           \
  F(EnumeratePhysicalDevices, (VkInstance i, uint32_t *n, VkPhysicalDevice *d), (i, n, d), 0, )                         \
  F(EnumerateDeviceExtensionProperties,                                                                                 \
    (VkPhysicalDevice d, const char *l, uint32_t *n, VkExtensionProperties *p), (d, l, n, p), 0, )

static struct {
  PFN_vkGetInstanceProcAddr GetInstanceProcAddr;
  PFN_vkGetDeviceProcAddr GetDeviceProcAddr;
  PFN_vkCmdCopyQueryPoolResults CmdCopyQueryPoolResults;
  PFN_vkCmdFillBuffer CmdFillBuffer;
#define MEMBER(name, params, args, lost, outputs) PFN_vk##name name;
  DEVICE_FUNCTIONS(MEMBER)
  INSTANCE_FUNCTIONS(MEMBER)
} next;

static VkDevice device_below;
static pthread_mutex_t submitting = PTHREAD_MUTEX_INITIALIZER;
static char wanted[64];
static int wanted_call, wanted_code;
static atomic_int lost;

static void say(const char *format, const char *name, long a, long b) {
  const char *path = getenv("FAULT_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (!log) return;
  fprintf(log, format, name, a, b);
  fclose(log);
}

__attribute__((constructor)) static void read_point(void) {
  const char *point = getenv("FAULT_POINT");
  if (point) sscanf(point, "%63s %d %d", wanted, &wanted_call, &wanted_code);
}

// Whether this call of `name`, the `call`th, fails, and with what.
static int fails(const char *name, int call, int can_be_lost, VkResult *code) {
  if (call == wanted_call && !strcmp(name, wanted)) {
    say("fired %s %ld %ld\n", name, call, wanted_code);
    if (wanted_code == VK_ERROR_DEVICE_LOST) {
      pthread_mutex_lock(&submitting);
      atomic_store(&lost, 1);
      if (device_below) next.DeviceWaitIdle(device_below);
      pthread_mutex_unlock(&submitting);
    }
    *code = wanted_code;
    return 1;
  }
  *code = VK_ERROR_DEVICE_LOST;
  return can_be_lost && atomic_load(&lost);
}

#define WRAPPER(name, params, args, can_be_lost, outputs)                                                               \
  static atomic_int calls_##name;                                                                                       \
  static VKAPI_ATTR VkResult VKAPI_CALL layer_##name params {                                                           \
    VkResult code;                                                                                                      \
    if (fails("vk" #name, atomic_fetch_add(&calls_##name, 1) + 1, can_be_lost, &code)) {                                \
      outputs;                                                                                                          \
      return code;                                                                                                      \
    }                                                                                                                   \
    if (strncmp(#name, "QueueSubmit", 11)) return next.name args;                                                       \
    pthread_mutex_lock(&submitting);                                                                                    \
    code = atomic_load(&lost) ? VK_ERROR_DEVICE_LOST : next.name args;                                                  \
    pthread_mutex_unlock(&submitting);                                                                                  \
    return code;                                                                                                        \
  }
DEVICE_FUNCTIONS(WRAPPER)
INSTANCE_FUNCTIONS(WRAPPER)
static atomic_int calls_CreateDevice;

__attribute__((destructor)) static void report(void) {
#define COUNT(name, params, args, can_be_lost, outputs) say("count %s %ld\n", "vk" #name, atomic_load(&calls_##name), 0);
  DEVICE_FUNCTIONS(COUNT)
  INSTANCE_FUNCTIONS(COUNT)
  COUNT(CreateDevice, , , , )
}

// Timestamps arrive in a buffer, 8 bytes each: begin and end of a pass in turns. What they become is written over them.
static VKAPI_ATTR void VKAPI_CALL layer_CmdCopyQueryPoolResults(
    VkCommandBuffer c, VkQueryPool p, uint32_t first, uint32_t n, VkBuffer b, VkDeviceSize o, VkDeviceSize stride,
    VkQueryResultFlags f) {
  static atomic_int copies;
  next.CmdCopyQueryPoolResults(c, p, first, n, b, o, stride, f);
  const char *lie = getenv("FAULT_STAMPS");
  if (!lie) return;
  int copy = atomic_fetch_add(&copies, 1);
  if (!strcmp(lie, "first-begin-zero") && copy == 0) {
    next.CmdFillBuffer(c, b, o, 8, 0);
  } else if (!strcmp(lie, "all-zero")) {
    next.CmdFillBuffer(c, b, o, (VkDeviceSize)n * 8, 0);
  } else if (!strcmp(lie, "begin-zero")) {
    for (uint32_t i = 0; i < n; i += 2) next.CmdFillBuffer(c, b, o + i * 8, 8, 0);
  } else if (!strcmp(lie, "end-zero")) {
    for (uint32_t i = 1; i < n; i += 2) next.CmdFillBuffer(c, b, o + i * 8, 8, 0);
  } else {
    return;
  }
  say("fired %s %ld %ld\n", lie, copy + 1, n);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetInstanceProcAddr(VkInstance instance, const char *name);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetDeviceProcAddr(VkDevice device, const char *name);

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateInstance(
    const VkInstanceCreateInfo *info, const VkAllocationCallbacks *a, VkInstance *instance) {
  VkLayerInstanceCreateInfo *chain = (VkLayerInstanceCreateInfo *)info->pNext;
  while (chain && !(chain->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && chain->function == VK_LAYER_LINK_INFO))
    chain = (VkLayerInstanceCreateInfo *)chain->pNext;
  if (!chain) return VK_ERROR_INITIALIZATION_FAILED;
  next.GetInstanceProcAddr = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
  VkResult code = ((PFN_vkCreateInstance)next.GetInstanceProcAddr(NULL, "vkCreateInstance"))(info, a, instance);
  if (code != VK_SUCCESS) return code;
#define LOAD_INSTANCE(name, params, args, can_be_lost, outputs)                                                         \
  next.name = (PFN_vk##name)next.GetInstanceProcAddr(*instance, "vk" #name);
  INSTANCE_FUNCTIONS(LOAD_INSTANCE)
  return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL layer_CreateDevice(
    VkPhysicalDevice physical, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *a, VkDevice *device) {
  VkResult code;
  if (fails("vkCreateDevice", atomic_fetch_add(&calls_CreateDevice, 1) + 1, 1, &code)) {
    *device = VK_NULL_HANDLE;
    return code;
  }
  VkLayerDeviceCreateInfo *chain = (VkLayerDeviceCreateInfo *)info->pNext;
  while (chain && !(chain->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && chain->function == VK_LAYER_LINK_INFO))
    chain = (VkLayerDeviceCreateInfo *)chain->pNext;
  if (!chain) return VK_ERROR_INITIALIZATION_FAILED;
  PFN_vkGetInstanceProcAddr instance_proc = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  next.GetDeviceProcAddr = chain->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
  code = ((PFN_vkCreateDevice)instance_proc(NULL, "vkCreateDevice"))(physical, info, a, device);
  if (code != VK_SUCCESS) return code;
#define LOAD(name, ...) next.name = (PFN_vk##name)next.GetDeviceProcAddr(*device, "vk" #name);
  DEVICE_FUNCTIONS(LOAD)
  LOAD(CmdCopyQueryPoolResults)
  LOAD(CmdFillBuffer)
  device_below = *device;
  return VK_SUCCESS;
}

// The layer's own function of this name. Functions that an extension brought and a version took over have two names.
static PFN_vkVoidFunction own(const char *name, int instance_level) {
  size_t length = strlen(name);
  if (length > 3 && !strcmp(name + length - 3, "KHR")) length -= 3;
#define OWN(symbol, ...)                                                                                                \
  if (length == strlen("vk" #symbol) && !strncmp(name, "vk" #symbol, length)) return (PFN_vkVoidFunction)layer_##symbol;
  if (instance_level) {
    INSTANCE_FUNCTIONS(OWN)
    OWN(CreateInstance)
    OWN(CreateDevice)
    OWN(GetInstanceProcAddr)
  }
  DEVICE_FUNCTIONS(OWN)
  OWN(CmdCopyQueryPoolResults)
  OWN(GetDeviceProcAddr)
  return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetDeviceProcAddr(VkDevice device, const char *name) {
  // What the driver does not have, the layer does not either.
  PFN_vkVoidFunction mine = own(name, 0), theirs = next.GetDeviceProcAddr(device, name);
  return mine && theirs ? mine : theirs;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL layer_GetInstanceProcAddr(VkInstance instance, const char *name) {
  PFN_vkVoidFunction mine = own(name, 1);
  if (mine) return mine;
  return instance ? next.GetInstanceProcAddr(instance, name) : NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
  interface->loaderLayerInterfaceVersion = 2;
  interface->pfnGetInstanceProcAddr = layer_GetInstanceProcAddr;
  interface->pfnGetDeviceProcAddr = layer_GetDeviceProcAddr;
  interface->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}
