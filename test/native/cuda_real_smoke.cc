// What a real driver does, measured and asked: not a unit test, run by hand on a machine with a GPU.
//   g++ -O2 -std=c++17 -Icsrc test/native/cuda_real_smoke.cc csrc/{device/cuda,reader/gds/cufile}_api.cc \
//     csrc/base/*.cc -ldl
// Exits with 0 when every byte came back right and every call of the slice that must succeed did. The lines "behaviour"
// are the facts that the emulator is modelled on: cuda_behaviour.txt has an H200's (driver 580.159, CUDA 13.0), and
// cuda_behaviour_test.cc compares. `behaviour` as argument: those alone. Against the emulator set
// FST_EMU_CUDA_STRICT=0, which misuse would else abort.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "reader/gds/cufile_api.h"
#include "support/driver_api.h"

namespace {

using namespace fst;
using Clock = std::chrono::steady_clock;

constexpr size_t kMiB = size_t{1} << 20;
const cuda::DriverApi* api;
int failures = 0;

double Seconds(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

void Require(const Status& status, int line) {
  if (status.ok()) return;
  printf("FAILED (line %d): %s: %s\n", line, CodeName(status.code()), status.message().c_str());
  ++failures;
}
#define REQUIRE_CU(member, ...) Require(FST_CUDA_CHECK(*api, member, __VA_ARGS__), __LINE__)

void RequireTrue(bool condition, const char* what) {
  printf("%-60s %s\n", what, condition ? "ok" : "FAILED");
  failures += !condition;
}

void Behaviour(const char* what, cuda::CUresult result) {
  printf("behaviour: %-70s %s\n", what, api->Describe(result).c_str());
}

// Runs `call` `times` times and prints the mean in microseconds.
void Cost(const char* what, int times, const std::function<void()>& call) {
  auto start = Clock::now();
  for (int i = 0; i < times; ++i) call();
  printf("cost: %-60s %10.2f us\n", what, Seconds(start) / times * 1e6);
}

void Fill(void* memory, size_t bytes, uint64_t seed) {
  auto* words = static_cast<uint64_t*>(memory);
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = seed = seed * 6364136223846793005u + 1442695040888963407u;
}

void Describe() {
  int version = 0, count = 0;
  char name[256] = "", bus[32] = "";
  size_t total = 0, free = 0;
  REQUIRE_CU(DriverGetVersion, &version);
  REQUIRE_CU(DeviceGetCount, &count);
  REQUIRE_CU(DeviceGetName, name, sizeof name, 0);
  REQUIRE_CU(DeviceGetPCIBusId, bus, sizeof bus, 0);
  REQUIRE_CU(DeviceTotalMem, &total, 0);
  REQUIRE_CU(MemGetInfo, &free, &total);
  printf("library %s, driver %d, %d device(s), 0: %s at %s, %zu MiB free of %zu\n", api->library.c_str(), version,
         count, name, bus, free / kMiB, total / kMiB);
  for (int attribute : {18, 19, 33, 34, 40, 41, 50, 75, 76, 83, 88, 89, 91, 99, 100, 116, 134}) {
    int value = -12345;
    cuda::CUresult result = api->DeviceGetAttribute(&value, attribute, 0);
    printf("attribute %d = %d%s\n", attribute, value, result == 0 ? "" : (" " + api->Describe(result)).c_str());
  }
}

// Host → device → host through a stream and an event, with 64 MiB of `host` memory that is page-locked.
void RoundTrip(const char* what, unsigned char* host, size_t bytes) {
  cuda::CUdeviceptr device = 0;
  cuda::CUstream stream = nullptr;
  cuda::CUevent event = nullptr;
  REQUIRE_CU(MemAlloc, &device, bytes);
  REQUIRE_CU(StreamCreate, &stream, cuda::kStreamNonBlocking);
  REQUIRE_CU(EventCreate, &event, cuda::kEventDisableTiming);
  std::vector<unsigned char> expected(bytes);
  Fill(expected.data(), bytes, 7);
  memcpy(host, expected.data(), bytes);
  for (size_t at = 0; at < bytes; at += 4 * kMiB) REQUIRE_CU(MemcpyHtoDAsync, device + at, host + at, 4 * kMiB, stream);
  REQUIRE_CU(EventRecord, event, stream);
  int polls = 0;
  cuda::CUresult done;
  while ((done = api->EventQuery(event)) == cuda::kNotReady) ++polls;
  Require(api->Check(done, "cuEventQuery"), __LINE__);
  memset(host, 0, bytes);
  REQUIRE_CU(MemcpyDtoHAsync, host, device, bytes, stream);
  REQUIRE_CU(StreamSynchronize, stream);
  printf("%s: %d polls until the event, ", what, polls);
  RequireTrue(memcmp(host, expected.data(), bytes) == 0, "bytes equal after the round trip");
  unsigned type = 0;
  int ordinal = -1;
  REQUIRE_CU(PointerGetAttribute, &type, cuda::kPointerMemoryType, device);
  REQUIRE_CU(PointerGetAttribute, &ordinal, cuda::kPointerDeviceOrdinal, device);
  RequireTrue(type == cuda::kMemoryTypeDevice && ordinal == 0, "pointer attributes of device memory");
  REQUIRE_CU(PointerGetAttribute, &type, cuda::kPointerMemoryType, reinterpret_cast<cuda::CUdeviceptr>(host));
  RequireTrue(type == cuda::kMemoryTypeHost, "pointer attributes of page-locked memory");
  cuda::CUdeviceptr alias = 0;
  cuda::CUresult mapped = api->MemHostGetDevicePointer(&alias, host, 0);
  printf("device pointer of page-locked memory: %s, %s the host's\n", api->Describe(mapped).c_str(),
         alias == reinterpret_cast<cuda::CUdeviceptr>(host) ? "equal to" : "other than");
  REQUIRE_CU(EventDestroy, event);
  REQUIRE_CU(StreamDestroy, stream);
  REQUIRE_CU(MemFree, device);
}

void Bandwidth(const char* what, unsigned char* host, size_t bytes, size_t piece) {
  cuda::CUdeviceptr device = 0;
  cuda::CUstream stream = nullptr;
  REQUIRE_CU(MemAlloc, &device, bytes);
  REQUIRE_CU(StreamCreate, &stream, cuda::kStreamNonBlocking);
  for (int round = 0; round < 3; ++round) {
    auto start = Clock::now();
    for (size_t at = 0; at < bytes; at += piece) REQUIRE_CU(MemcpyHtoDAsync, device + at, host + at, piece, stream);
    double issued = Seconds(start);
    REQUIRE_CU(StreamSynchronize, stream);
    double seconds = Seconds(start);
    printf("bandwidth: %s, pieces of %zu KiB, round %d: %.2f GB/s (calls returned after %.0f%% of it)\n", what,
           piece >> 10, round, static_cast<double>(bytes) / seconds / 1e9, issued / seconds * 100);
  }
  REQUIRE_CU(StreamDestroy, stream);
  REQUIRE_CU(MemFree, device);
}

void Costs(unsigned char* pinned) {
  cuda::CUdeviceptr device = 0, other = 0;
  cuda::CUstream stream = nullptr;
  cuda::CUevent event = nullptr;
  for (size_t bytes : {size_t{256}, 64 * size_t{1024}, kMiB, 16 * kMiB, 256 * kMiB}) {
    printf("%zu KiB: ", bytes >> 10);
    Cost("cuMemAlloc + cuMemFree", 20, [&] {
      REQUIRE_CU(MemAlloc, &other, bytes);
      REQUIRE_CU(MemFree, other);
    });
  }
  std::vector<cuda::CUdeviceptr> many(512);
  for (auto& pointer : many) REQUIRE_CU(MemAlloc, &pointer, 1000);
  cuda::CUdeviceptr aligned = 0;
  for (auto pointer : many) aligned |= pointer;
  printf("512 allocations of 1000 bytes: common alignment %llu\n", aligned & (~aligned + 1));
  for (auto pointer : many) REQUIRE_CU(MemFree, pointer);
  for (size_t bytes : {kMiB, 64 * kMiB}) {
    void* memory = nullptr;
    printf("%zu MiB: ", bytes / kMiB);
    Cost("cuMemHostAlloc + cuMemFreeHost", 5, [&] {
      REQUIRE_CU(MemHostAlloc, &memory, bytes, cuda::kMemHostAllocPortable);
      REQUIRE_CU(MemFreeHost, memory);
    });
  }
  for (bool huge : {false, true}) {
    for (bool touched : {false, true}) {
      double touch = 0, lock = 0, unlock = 0;
      for (int i = 0; i < 5; ++i) {
        constexpr size_t kBytes = 64 * kMiB, kAlign = 2 * kMiB;
        void* mapping = mmap(nullptr, kBytes + kAlign, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapping == MAP_FAILED) return Require(Status(Code::OUT_OF_HOST_MEMORY, "mmap"), __LINE__);
        auto* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(mapping) + kAlign - 1) / kAlign * kAlign);
        madvise(memory, kBytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        auto start = Clock::now();
        if (touched) memset(memory, 1, kBytes);
        touch += Seconds(start);
        start = Clock::now();
        REQUIRE_CU(MemHostRegister, memory, kBytes, cuda::kMemHostRegisterPortable);
        lock += Seconds(start);
        start = Clock::now();
        REQUIRE_CU(MemHostUnregister, memory);
        munmap(mapping, kBytes + kAlign);
        unlock += Seconds(start);
      }
      printf("cost: 64 MiB of %s pages: touch %.2f ms, cuMemHostRegister %.2f ms, unregister and unmap %.2f ms\n",
             huge ? "huge" : "small", touch / 5 * 1e3, lock / 5 * 1e3, unlock / 5 * 1e3);
    }
  }
  REQUIRE_CU(MemAlloc, &device, 64 * kMiB);
  REQUIRE_CU(StreamCreate, &stream, cuda::kStreamNonBlocking);
  REQUIRE_CU(EventCreate, &event, cuda::kEventDisableTiming);
  for (size_t bytes : {size_t{256}, size_t{4096}, kMiB, 4 * kMiB}) {
    printf("%zu bytes: ", bytes);
    Cost("cuMemcpyHtoDAsync, the call", 200, [&] { REQUIRE_CU(MemcpyHtoDAsync, device, pinned, bytes, stream); });
    auto start = Clock::now();
    REQUIRE_CU(StreamSynchronize, stream);
    printf("  (then %.0f us until 200 of them are done)\n", Seconds(start) * 1e6);
  }
  Cost("cuEventRecord", 1000, [&] { REQUIRE_CU(EventRecord, event, stream); });
  REQUIRE_CU(StreamSynchronize, stream);
  Cost("cuEventQuery, done", 10000, [&] { REQUIRE_CU(EventQuery, event); });
  for (int i = 0; i < 16; ++i) REQUIRE_CU(MemcpyHtoDAsync, device, pinned, 64 * kMiB, stream);
  REQUIRE_CU(EventRecord, event, stream);
  Cost("cuEventQuery, pending", 1000, [&] { (void)api->EventQuery(event); });
  printf("  (the event is %s after them)\n",
         api->EventQuery(event) == cuda::kNotReady ? "still pending" : "done already");
  REQUIRE_CU(StreamSynchronize, stream);
  Cost("cuStreamCreate + cuStreamDestroy", 20, [&] {
    cuda::CUstream made = nullptr;
    REQUIRE_CU(StreamCreate, &made, cuda::kStreamNonBlocking);
    REQUIRE_CU(StreamDestroy, made);
  });
  cuda::CUcontext context = nullptr;
  REQUIRE_CU(CtxGetCurrent, &context);
  Cost("cuCtxSetCurrent", 1000, [&] { REQUIRE_CU(CtxSetCurrent, context); });
  REQUIRE_CU(MemsetD8Async, device, 0xA5, kMiB, stream);
  REQUIRE_CU(StreamWaitEvent, stream, event, 0);
  REQUIRE_CU(MemcpyDtoDAsync, device + kMiB, device, kMiB, stream);
  REQUIRE_CU(StreamSynchronize, stream);
  std::vector<unsigned char> back(kMiB);
  REQUIRE_CU(MemcpyDtoH, back.data(), device + kMiB, kMiB);
  bool equal = true;
  for (unsigned char byte : back) equal = equal && byte == 0xA5;
  RequireTrue(equal, "memset, copy within the device, synchronous copy back");
  REQUIRE_CU(EventDestroy, event);
  REQUIRE_CU(StreamDestroy, stream);
  REQUIRE_CU(MemFree, device);
}

void Managed() {
  cuda::CUdeviceptr managed = 0;
  Behaviour("cuMemAllocManaged", api->MemAllocManaged(&managed, kMiB, cuda::kMemAttachGlobal));
  if (managed == 0) return;
  unsigned type = 0;
  Behaviour("memory type of managed memory", api->PointerGetAttribute(&type, cuda::kPointerMemoryType, managed));
  printf("  is %u\n", type);
  REQUIRE_CU(MemFree, managed);
}

// Misuse that leaves the context usable. What poisons it, or may crash, is left out.
// `copies` of 256 MiB are what is pending.
void Behaviours(unsigned char* pinned, int copies) {
  cuda::CUresult result = 0;
  std::thread([&] {
    cuda::CUdeviceptr pointer = 0;
    cuda::CUstream stream = nullptr;
    cuda::CUcontext current = nullptr;
    REQUIRE_CU(CtxGetCurrent, &current);
    RequireTrue(current == nullptr, "a new thread has no current context");
    Behaviour("cuMemAlloc without a context", api->MemAlloc(&pointer, 256));
    Behaviour("cuStreamCreate without a context", api->StreamCreate(&stream, 0));
    Behaviour("cuCtxSynchronize without a context", api->CtxSynchronize());
    Behaviour("cuMemHostRegister without a context", api->MemHostRegister(pinned, 4096, 0));
  }).join();
  cuda::CUdeviceptr device = 0, pointer = 0;
  cuda::CUstream stream = nullptr;
  cuda::CUevent event = nullptr;
  REQUIRE_CU(MemAlloc, &device, 256 * kMiB);
  REQUIRE_CU(StreamCreate, &stream, cuda::kStreamNonBlocking);
  REQUIRE_CU(EventCreate, &event, cuda::kEventDisableTiming);
  Behaviour("cuEventQuery of an event never recorded", api->EventQuery(event));
  Behaviour("cuMemAlloc of 0 bytes", api->MemAlloc(&pointer, 0));
  Behaviour("cuMemAlloc of 1 TiB", api->MemAlloc(&pointer, size_t{1} << 40));
  Behaviour("cuMemFree of 0", api->MemFree(0));
  Behaviour("cuMemFree of an unknown pointer", api->MemFree(0x123456000));
  Behaviour("cuMemFree inside an allocation", api->MemFree(device + 512));
  Behaviour("cuMemcpyHtoDAsync of 0 bytes", api->MemcpyHtoDAsync(device, pinned, 0, stream));
  Behaviour("cuMemcpyHtoD past the end of an allocation", api->MemcpyHtoD(device + 255 * kMiB, pinned, 2 * kMiB));
  Behaviour("cuMemcpyHtoDAsync past the end", api->MemcpyHtoDAsync(device + 255 * kMiB, pinned, 2 * kMiB, stream));
  Behaviour("cuMemcpyHtoDAsync to an unknown address", api->MemcpyHtoDAsync(0x123456000, pinned, 4096, stream));
  Behaviour("cuMemFreeHost of an unknown pointer", api->MemFreeHost(&device));
  void* mapping = mmap(nullptr, 4 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) return Require(Status(Code::OUT_OF_HOST_MEMORY, "mmap"), __LINE__);
  auto* memory = static_cast<unsigned char*>(mapping);
  Behaviour("cuMemHostUnregister of memory never registered", api->MemHostUnregister(memory));
  Behaviour("cuMemHostRegister, pages never touched", api->MemHostRegister(memory, kMiB, 0));
  Behaviour("cuMemHostRegister, the same again", api->MemHostRegister(memory, kMiB, 0));
  Behaviour("cuMemHostRegister, overlapping", api->MemHostRegister(memory + kMiB / 2, kMiB, 0));
  Behaviour("cuMemHostRegister, adjacent", api->MemHostRegister(memory + kMiB, kMiB, 0));
  Behaviour("cuMemHostUnregister inside a range", api->MemHostUnregister(memory + 4096));
  Behaviour("cuMemFreeHost of registered memory", api->MemFreeHost(memory));
  Behaviour("cuMemcpyHtoDAsync across two registered ranges", api->MemcpyHtoDAsync(device, memory, 2 * kMiB, stream));
  Behaviour("cuMemcpyHtoDAsync from half registered memory",
            api->MemcpyHtoDAsync(device, memory + kMiB, 2 * kMiB, stream));
  REQUIRE_CU(StreamSynchronize, stream);
  Behaviour("cuMemHostUnregister", api->MemHostUnregister(memory));
  Behaviour("cuMemHostUnregister, a second time", api->MemHostUnregister(memory));
  REQUIRE_CU(MemHostUnregister, memory + kMiB);
  Behaviour("cuMemHostRegister at an odd address and size", api->MemHostRegister(memory + 100, 5000, 0));
  Behaviour("cuMemHostUnregister of it", api->MemHostUnregister(memory + 100));
  munmap(mapping, 4 * kMiB);
  Behaviour("cuMemHostRegister of memory that is not mapped", api->MemHostRegister(memory, kMiB, 0));
  Behaviour("cuPointerGetAttribute of ordinary memory",
            api->PointerGetAttribute(&result, cuda::kPointerMemoryType, reinterpret_cast<cuda::CUdeviceptr>(&result)));

  cuda::CUdeviceptr busy = 0;
  REQUIRE_CU(MemAlloc, &busy, 256 * kMiB);
  for (int i = 0; i < copies; ++i) REQUIRE_CU(MemcpyHtoDAsync, busy, pinned, 256 * kMiB, stream);
  REQUIRE_CU(EventRecord, event, stream);
  Behaviour("cuStreamQuery with copies pending", api->StreamQuery(stream));
  auto start = Clock::now();
  Behaviour("cuMemAlloc with copies pending", api->MemAlloc(&pointer, kMiB));
  printf("  took %.3f ms; the copies are %s\n", Seconds(start) * 1e3,
         api->EventQuery(event) == 0 ? "done" : "still pending");
  REQUIRE_CU(MemFree, pointer);
  printf("  after freeing another block the copies are %s\n", api->EventQuery(event) == 0 ? "done" : "still pending");
  start = Clock::now();
  Behaviour("cuMemFree under pending copies", api->MemFree(busy));
  printf("  took %.3f ms; the copies are %s\n", Seconds(start) * 1e3,
         api->EventQuery(event) == 0 ? "done" : "still pending");
  for (int i = 0; i < copies; ++i) REQUIRE_CU(MemcpyHtoDAsync, device, pinned, 256 * kMiB, stream);
  start = Clock::now();
  Behaviour("cuEventDestroy and cuStreamDestroy under pending copies", api->EventDestroy(event));
  Behaviour("  cuStreamDestroy", api->StreamDestroy(stream));
  printf("  took %.3f ms\n", Seconds(start) * 1e3);
  REQUIRE_CU(CtxSynchronize);
  REQUIRE_CU(MemFree, device);
  Behaviour("cuMemFree a second time", api->MemFree(device));
  Behaviour("the context after all that: cuCtxSynchronize", api->CtxSynchronize());
}

#include "cuda_real_smoke_cufile.h"

}  // namespace

int main(int argc, char** argv) {
  const bool behaviour_only = argc > 1 && strcmp(argv[1], "behaviour") == 0;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  auto start = Clock::now();
  Status loaded = cuda::LoadDriver(&api);
  printf("cost: loading and cuInit %.1f ms\n", Seconds(start) * 1e3);
  if (!loaded.ok()) {
    printf("%s: %s\n", CodeName(loaded.code()), loaded.message().c_str());
    return 2;
  }
  cuda::CUcontext context = nullptr;
  start = Clock::now();
  REQUIRE_CU(DevicePrimaryCtxRetain, &context, 0);
  printf("cost: cuDevicePrimaryCtxRetain %.1f ms\n", Seconds(start) * 1e3);
  REQUIRE_CU(CtxSetCurrent, context);
  Describe();

  constexpr size_t kBytes = 256 * kMiB;
  void* allocated = nullptr;
  start = Clock::now();
  REQUIRE_CU(MemHostAlloc, &allocated, kBytes, cuda::kMemHostAllocPortable);
  printf("cost: cuMemHostAlloc of 256 MiB %.1f ms\n", Seconds(start) * 1e3);
  void* registered = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* pageable = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (allocated == nullptr || registered == MAP_FAILED || pageable == MAP_FAILED) return 1;
  memset(registered, 1, kBytes);
  memset(pageable, 2, kBytes);
  start = Clock::now();
  REQUIRE_CU(MemHostRegister, registered, kBytes, cuda::kMemHostRegisterPortable);
  printf("cost: cuMemHostRegister of 256 MiB, touched %.1f ms\n", Seconds(start) * 1e3);

  if (behaviour_only) {
    Managed();
    Behaviours(static_cast<unsigned char*>(allocated), 4);
    return failures == 0 ? 0 : 1;
  }
  RoundTrip("cuMemHostAlloc", static_cast<unsigned char*>(allocated), 64 * kMiB);
  RoundTrip("cuMemHostRegister", static_cast<unsigned char*>(registered), 64 * kMiB);
  for (size_t piece : {kMiB, 4 * kMiB, kBytes})
    Bandwidth("cuMemHostAlloc", static_cast<unsigned char*>(allocated), kBytes, piece);
  Bandwidth("cuMemHostRegister", static_cast<unsigned char*>(registered), kBytes, 4 * kMiB);
  for (size_t piece : {4 * kMiB, kBytes}) Bandwidth("pageable", static_cast<unsigned char*>(pageable), kBytes, piece);
  Costs(static_cast<unsigned char*>(allocated));
  Managed();
  Cufile();
  Behaviours(static_cast<unsigned char*>(allocated), 64);
  start = Clock::now();
  REQUIRE_CU(MemHostUnregister, registered);
  REQUIRE_CU(MemFreeHost, allocated);
  REQUIRE_CU(CtxSetCurrent, nullptr);
  REQUIRE_CU(DevicePrimaryCtxRelease, 0);
  printf("cost: unregister, free and release %.1f ms\n", Seconds(start) * 1e3);
  printf(failures == 0 ? "all ok\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}
