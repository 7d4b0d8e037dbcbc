// Compiles HLSL files with FXC or DXC, as wgpu does; built by MinGW and run by wine, beside the compilers' libraries.
//
//   hlsl.exe fxc|dxc PROFILE 16|32 LIST FIRST
//
// LIST holds lines of FILE, tab, ENTRY POINT; FIRST says how many to pass over. One line is printed per file: FILE, tab,
// milliseconds of processor time, tab, "passed" or "failed", tab, what the compiler said. FILE comes before the compiler is called, so that a
// file that kills or hangs it is known. "16" gives DXC 16-bit types.
#define COBJMACROS
#include <windows.h>
#include <d3dcompiler.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What is used of dxcapi.h, which MinGW does not have: IDxcCompiler3 and IDxcResult, up to the last method called.
typedef struct { const void *text; SIZE_T size; UINT code_page; } DxcBuffer;
typedef struct DxcResult DxcResult;
typedef struct {
  void *query, *add_ref;
  ULONG(WINAPI *release)(DxcResult *);
  HRESULT(WINAPI *status)(DxcResult *, HRESULT *);
  HRESULT(WINAPI *result)(DxcResult *, ID3DBlob **);
  HRESULT(WINAPI *errors)(DxcResult *, ID3DBlob **);
} DxcResultMethods;
struct DxcResult { const DxcResultMethods *methods; };
typedef struct DxcCompiler DxcCompiler;
typedef struct {
  void *query, *add_ref, *release;
  HRESULT(WINAPI *compile)(DxcCompiler *, const DxcBuffer *, const WCHAR **, UINT, void *, const GUID *, void **);
} DxcCompilerMethods;
struct DxcCompiler { const DxcCompilerMethods *methods; };
typedef HRESULT(WINAPI *DxcCreate)(const GUID *, const GUID *, void **);
static const GUID class_compiler = {0x73e22d93, 0xe6ce, 0x47f3, {0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0}};
static const GUID compiler3 = {0x228b4687, 0x5a6a, 0x4730, {0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54}};
static const GUID operation_result = {0xcedb484a, 0xd4e9, 0x445a, {0xb9, 0x91, 0xca, 0x21, 0xca, 0x15, 0x7d, 0xc2}};

static void *symbol(const char *library, const char *name) {
  HMODULE module = LoadLibraryA(library);
  void *found = module ? (void *)GetProcAddress(module, name) : NULL;
  if (found) return found;
  fprintf(stderr, "hlsl: %s has no %s, or cannot be loaded (error %lu)\n", library, name, GetLastError());
  exit(2);
}

static char *read_file(const char *path, SIZE_T *size) {
  FILE *file = fopen(path, "rb");
  if (!file) { fprintf(stderr, "hlsl: cannot read %s\n", path); exit(2); }
  fseek(file, 0, SEEK_END);
  long end = ftell(file);
  rewind(file);
  char *text = malloc(end + 1);
  *size = text ? fread(text, 1, end, file) : 0;
  if (*size != (SIZE_T)end) { fprintf(stderr, "hlsl: cannot read %s\n", path); exit(2); }
  fclose(file);
  return text;
}

static HRESULT fxc(pD3DCompile compile, const char *path, const char *text, SIZE_T size, const char *entry,
                   const char *profile, ID3DBlob **code, ID3DBlob **said) {
  return compile(text, size, path, NULL, NULL, entry, profile, D3DCOMPILE_ENABLE_STRICTNESS, 0, code, said);
}

static HRESULT dxc(DxcCompiler *compiler, const char *text, SIZE_T size, const char *entry, const char *profile, int bits,
                   ID3DBlob **code, ID3DBlob **said) {
  WCHAR wide_entry[128], wide_profile[32];
  MultiByteToWideChar(CP_UTF8, 0, entry, -1, wide_entry, 128);
  MultiByteToWideChar(CP_UTF8, 0, profile, -1, wide_profile, 32);
  const WCHAR *words[] = {L"-E", wide_entry, L"-T", wide_profile, L"-HV", L"2018", L"-no-warnings", L"-Ges",
                          L"-enable-16bit-types"};
  DxcBuffer buffer = {text, size, CP_UTF8};
  DxcResult *result = NULL;
  HRESULT status = compiler->methods->compile(compiler, &buffer, words, bits == 16 ? 9 : 8, NULL, &operation_result,
                                              (void **)&result);
  if (FAILED(status) || !result) return FAILED(status) ? status : E_FAIL;
  result->methods->status(result, &status);
  result->methods->result(result, code);
  result->methods->errors(result, said);
  result->methods->release(result);
  return status;
}

static void print_flat(ID3DBlob *said) {
  SIZE_T size = said ? ID3D10Blob_GetBufferSize(said) : 0;
  const char *text = said ? ID3D10Blob_GetBufferPointer(said) : "";
  const char *fault = strstr(text, "error"); // warnings may come first
  if (fault) { size -= (SIZE_T)(fault - text); text = fault; }
  for (SIZE_T i = 0; i < size && i < 400 && text[i]; i++) putchar(strchr("\r\n\t", text[i]) ? ' ' : text[i]);
}

static ULONGLONG processor_time(void) { // in ms: what a busy machine does beside is no compiler's fault
  FILETIME created, ended, kernel, user;
  if (!GetProcessTimes(GetCurrentProcess(), &created, &ended, &kernel, &user)) { fprintf(stderr, "hlsl: no times\n"); exit(2); }
  return ((((ULONGLONG)kernel.dwHighDateTime + user.dwHighDateTime) << 32) + kernel.dwLowDateTime + user.dwLowDateTime) / 10000;
}

int main(int count, char **words) {
  if (count != 6) { fprintf(stderr, "usage: hlsl.exe fxc|dxc PROFILE 16|32 LIST FIRST\n"); return 2; }
  int is_fxc = !strcmp(words[1], "fxc"), bits = atoi(words[3]), first = atoi(words[5]);
  pD3DCompile compile = NULL;
  DxcCompiler *compiler = NULL;
  if (is_fxc) compile = (pD3DCompile)symbol("d3dcompiler_47.dll", "D3DCompile");
  else {
    DxcCreate create = (DxcCreate)symbol("dxcompiler.dll", "DxcCreateInstance");
    if (FAILED(create(&class_compiler, &compiler3, (void **)&compiler))) { fprintf(stderr, "hlsl: no IDxcCompiler3\n"); return 2; }
  }
  FILE *list = fopen(words[4], "r");
  if (!list) { fprintf(stderr, "hlsl: cannot read %s\n", words[4]); return 2; }
  char line[1024];
  for (int number = 0; fgets(line, sizeof line, list); number++) {
    if (number < first) continue;
    char *path = strtok(line, "\t"), *entry = strtok(NULL, "\t\r\n");
    if (!path || !entry) { fprintf(stderr, "hlsl: %s:%d is not FILE, tab, ENTRY POINT\n", words[4], number + 1); return 2; }
    SIZE_T size;
    char *text = read_file(path, &size);
    printf("%s\t", path);
    fflush(stdout);
    ID3DBlob *code = NULL, *said = NULL;
    ULONGLONG start = processor_time();
    HRESULT status = is_fxc ? fxc(compile, path, text, size, entry, words[2], &code, &said)
                            : dxc(compiler, text, size, entry, words[2], bits, &code, &said);
    ULONGLONG took = processor_time() - start;
    int passed = SUCCEEDED(status) && code && ID3D10Blob_GetBufferSize(code) > 0;
    printf("%llu\t%s\t", took, passed ? "passed" : "failed");
    if (!passed) { printf("%08lx ", (unsigned long)status); print_flat(said); }
    printf("\n");
    fflush(stdout);
    if (code) ID3D10Blob_Release(code);
    if (said) ID3D10Blob_Release(said);
    free(text);
  }
  return 0;
}
