// cuFile's functions.
#include <fcntl.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "device/cuda_api.h"
#include "emulators/cufile/emulator.h"

namespace fst::cufile {

using emu_cufile::Buffer;
using emu_cufile::Call;
using emu_cufile::Clock;
using emu_cufile::Handle;

namespace {

constexpr size_t kPage = 4096;

CUfileError Result(int error) { return CUfileError{error, error == kCudaDriverError ? 999 : 0}; }

// Reads until `bytes` or the end of the file. Negative: an errno.
ssize_t ReadFully(int fd, char* to, size_t bytes, off_t offset) {
  size_t done = 0;
  while (done < bytes) {
    ssize_t got = pread(fd, to + done, bytes - done, offset + static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -errno;
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<ssize_t>(done);
}

// As cuFile, whose calls on files and memory are made in the context that the thread has.
constexpr int kContextMismatch = 5015;
bool InContext(const Call& call) { return call.emulator.driver.acquire(0, 1) != cuda::kInvalidContext; }

// True when the caller's descriptor is still the file that was registered.
bool StillOpen(const Handle& handle) {
  struct stat now;
  return fstat(handle.fd, &now) == 0 && now.st_dev == handle.device && now.st_ino == handle.inode;
}

}  // namespace

CUfileError cuFileDriverOpen() {
  Call call("cuFileDriverOpen", false);
  if (call.error != 0) return Result(call.error);
  if (call.emulator.open) return Result(call.Refuse(kDriverAlreadyOpen, "a second time"));
  if (call.emulator.compat && !call.emulator.allow_compat) {
    return Result(call.Refuse(kDriverNotInitialized, "no nvidia-fs driver, and compatibility mode is not allowed"));
  }
  if (!call.emulator.FindDriver()) {
    return Result(call.Refuse(kCudaDriverError, "FASTSAFETENSORS_CUDA_LIB is not the emulated CUDA driver"));
  }
  call.emulator.open = true;
  auto wait = std::chrono::milliseconds(call.emulator.open_ms);
  call.lock.unlock();
  std::this_thread::sleep_for(wait);
  return Result(0);
}

CUfileError cuFileDriverClose() {
  Call call("cuFileDriverClose", true, Call::kRelease);
  if (call.error != 0) return Result(call.error);
  size_t handles = call.emulator.handles.size(), buffers = call.emulator.buffers.size();
  if (handles + buffers != 0) {
    int refused = call.Misuse(0, "with %zu files and %zu buffers registered, %llu reads in flight", handles, buffers,
                              call.emulator.counters.in_flight);
    if (refused != 0) return Result(refused);
    call.emulator.changed.wait(call.lock, [&] { return call.emulator.counters.in_flight == 0; });
    call.emulator.handles.clear();
    call.emulator.buffers.clear();
  }
  call.emulator.open = false;
  return Result(call.late);
}

// Optional in FST_CUFILE_API's sense: not of the list whose calls can be made to fail.
extern "C" __attribute__((visibility("default"))) CUfileError cuFileGetVersion(int* version) {
  *version = 1131;
  return Result(0);
}

CUfileError cuFileDriverGetProperties(CUfileDrvProps* properties) {
  Call call("cuFileDriverGetProperties", true);
  if (call.error != 0) return Result(call.error);
  // Not the whole of our struct, whose reserve cuFile does not know.
  memset(properties, 0, offsetof(CUfileDrvProps, reserved));
  if (!call.emulator.compat) {
    properties->nvfs.major_version = 2;
    properties->nvfs.minor_version = 26;
    properties->nvfs.dstatusflags = 1u << 4;  // NVMe
  }
  properties->nvfs.dcontrolflags = call.emulator.allow_compat ? 1u << kControlAllowCompat : 0;
  properties->nvfs.max_direct_io_size = 16384;
  properties->max_device_cache_size = 131072;
  properties->per_buffer_cache_size = 1024;
  properties->max_device_pinned_mem_size = 33554432;
  properties->max_batch_io_size = 128;
  return Result(0);
}

CUfileError cuFileHandleRegister(void** handle, CUfileDescr* description) {
  Call call("cuFileHandleRegister", true);
  if (call.error != 0) return Result(call.error);
  if (handle == nullptr || description == nullptr || description->type != kHandleTypeOpaqueFd) {
    return Result(call.Refuse(kInvalidValue, "expected a descriptor of type 1"));
  }
  if (!InContext(call)) return Result(call.Refuse(kContextMismatch, "the thread has no context"));
  auto made = std::make_shared<Handle>();
  made->fd = description->handle.fd;
  struct stat info;
  int flags = fcntl(made->fd, F_GETFL);
  if (flags < 0 || fstat(made->fd, &info) != 0)
    return Result(call.Refuse(kInvalidValue, "descriptor %d is not open", made->fd));
  if (!S_ISREG(info.st_mode))
    return Result(call.Refuse(kInvalidFileType, "descriptor %d is no regular file", made->fd));
  for (const auto& [other, registered] : call.emulator.handles) {
    if (registered->fd == made->fd) return Result(call.Refuse(kHandleAlreadyRegistered, "descriptor %d", made->fd));
  }
  if ((flags & O_DIRECT) == 0) {
    if (call.emulator.require_direct)
      return Result(call.Refuse(kDioNotSet, "descriptor %d was opened without O_DIRECT", made->fd));
    ++call.emulator.counters.buffered_files;
  }
  std::string link = "/proc/self/fd/" + std::to_string(made->fd);
  char path[4096];
  ssize_t length = readlink(link.c_str(), path, sizeof path);
  made->path = length > 0 ? std::string(path, static_cast<size_t>(length)) : link;
  if (!call.emulator.refuse.empty() && fnmatch(call.emulator.refuse.c_str(), made->path.c_str(), 0) == 0) {
    return Result(call.Refuse(call.emulator.refuse_code, "%s is to be refused", made->path.c_str()));
  }
  made->reader = open(link.c_str(), O_RDONLY | O_CLOEXEC);
  if (made->reader < 0) return Result(call.Refuse(kPermissionDenied, "%s: %s", made->path.c_str(), strerror(errno)));
  made->device = info.st_dev;
  made->inode = info.st_ino;
  *handle = reinterpret_cast<void*>(call.emulator.next_handle += 16);
  call.emulator.handles[*handle] = std::move(made);
  return Result(0);
}

void cuFileHandleDeregister(void* handle) {
  Call call("cuFileHandleDeregister", true, Call::kRelease);
  if (call.error != 0) return;
  auto found = call.emulator.handles.find(handle);
  if (found == call.emulator.handles.end()) {
    (void)call.Misuse(0, "of %p, which is not registered (any more)", handle);
    return;
  }
  std::shared_ptr<Handle> file = found->second;
  if (!InContext(call)) (void)call.Misuse(0, "of %s on a thread without a context", file->path.c_str());
  if (file->in_flight > 0) (void)call.Misuse(0, "of %s with %d reads in flight", file->path.c_str(), file->in_flight);
  if (!StillOpen(*file))
    (void)call.Misuse(0, "of %s, whose descriptor %d was closed before", file->path.c_str(), file->fd);
  call.emulator.changed.wait(call.lock, [&] { return file->in_flight == 0; });
  call.emulator.handles.erase(handle);
}

CUfileError cuFileBufRegister(const void* base, size_t bytes, int) {
  Call call("cuFileBufRegister", true);
  if (call.error != 0) return Result(call.error);
  auto from = reinterpret_cast<uintptr_t>(base);
  if (from == 0 || bytes == 0) return Result(call.Refuse(kInvalidValue, "%zu bytes at %p", bytes, base));
  auto next = call.emulator.buffers.lower_bound(from);
  bool overlaps = next != call.emulator.buffers.end() && next->first - from < bytes;
  if (next != call.emulator.buffers.begin()) overlaps |= from - std::prev(next)->first < std::prev(next)->second->bytes;
  if (overlaps) return Result(call.Refuse(kMemoryAlreadyRegistered, "%zu bytes at %p", bytes, base));
  int acquired = call.emulator.driver.acquire(from, bytes);
  if (acquired != 0) return Result(call.FromDriver(acquired));
  call.emulator.driver.release(from);
  auto buffer = std::make_shared<Buffer>();
  buffer->bytes = bytes;
  call.emulator.buffers[from] = std::move(buffer);
  return Result(0);
}

CUfileError cuFileBufDeregister(const void* base) {
  Call call("cuFileBufDeregister", true);
  if (call.error != 0) return Result(call.error);
  auto found = call.emulator.buffers.find(reinterpret_cast<uintptr_t>(base));
  if (found == call.emulator.buffers.end()) {
    return Result(call.Misuse(kMemoryNotRegistered, "of %p, which is not registered (any more)", base));
  }
  std::shared_ptr<Buffer> buffer = found->second;
  if (buffer->in_flight > 0) (void)call.Misuse(0, "of %p with %d reads in flight", base, buffer->in_flight);
  int acquired = call.emulator.driver.acquire(found->first, buffer->bytes);
  if (acquired == 0) {
    call.emulator.driver.release(found->first);
  } else if (acquired == cuda::kInvalidValue) {
    (void)call.Misuse(0, "of %p, whose memory was freed before", base);
  } else if (acquired == cuda::kInvalidContext) {
    (void)call.Misuse(0, "of %p, which is of another context than the thread's", base);
  }
  call.emulator.changed.wait(call.lock, [&] { return buffer->in_flight == 0; });
  call.emulator.buffers.erase(reinterpret_cast<uintptr_t>(base));
  return Result(0);
}

ssize_t cuFileRead(void* handle, void* base, size_t bytes, off_t file_offset, off_t base_offset) {
  Call call("cuFileRead", true);
  auto& emulator = call.emulator;
  if (call.error < 0) {
    errno = -call.error;
    return -1;
  }
  if (call.error != 0) return -call.error;
  auto found = emulator.handles.find(handle);
  if (found == emulator.handles.end())
    return -call.Misuse(kHandleNotRegistered, "of %p, which is not registered (any more)", handle);
  std::shared_ptr<Handle> file = found->second;
  if (!StillOpen(*file))
    return -call.Misuse(kInvalidValue, "of %s, whose descriptor %d was closed", file->path.c_str(), file->fd);
  if (file_offset < 0 || base_offset < 0) return -call.Refuse(kInvalidValue, "a negative offset");
  auto start = reinterpret_cast<uintptr_t>(base);
  auto to = start + static_cast<uintptr_t>(base_offset);
  auto registered = emulator.buffers.find(start);
  std::shared_ptr<Buffer> buffer = registered == emulator.buffers.end() ? nullptr : registered->second;
  if (buffer != nullptr &&
      (static_cast<size_t>(base_offset) > buffer->bytes || bytes > buffer->bytes - static_cast<size_t>(base_offset))) {
    return -call.Refuse(kInvalidValue, "%zu bytes at offset %lld of a buffer of %zu bytes", bytes,
                        static_cast<long long>(base_offset), buffer->bytes);
  }
  if (bytes == 0) return 0;
  int acquired = emulator.driver.acquire(to, bytes);
  if (acquired != 0) return -call.FromDriver(acquired);

  size_t wanted = emulator.most_bytes != 0 ? std::min<size_t>(bytes, emulator.most_bytes) : bytes;
  struct stat info = {};
  fstat(file->reader, &info);
  if (emulator.end != 0) {
    info.st_size = std::min(info.st_size, static_cast<off_t>(emulator.end));
    wanted = std::min<size_t>(wanted, file_offset < info.st_size ? static_cast<size_t>(info.st_size - file_offset) : 0);
  }
  bool to_end = file_offset + static_cast<off_t>(bytes) >= info.st_size;
  emulator.counters.unaligned_reads +=
      to % kPage != 0 || file_offset % static_cast<off_t>(kPage) != 0 || (bytes % kPage != 0 && !to_end);
  emulator.counters.unregistered_reads += buffer == nullptr;
  ++emulator.counters.in_flight;
  ++file->in_flight;
  if (buffer != nullptr) ++buffer->in_flight;
  Clock::time_point end = Clock::now() + std::chrono::microseconds(emulator.delay_us);
  if (emulator.bandwidth != 0) {
    double seconds = static_cast<double>(wanted) / static_cast<double>(emulator.bandwidth);
    end = emulator.busy_until =
        std::max(end, emulator.busy_until) + std::chrono::nanoseconds(static_cast<long long>(seconds * 1e9));
  }

  call.lock.unlock();
  std::vector<char> bounce(wanted);
  ssize_t got = ReadFully(file->reader, bounce.data(), wanted, file_offset);
  std::this_thread::sleep_until(end);
  call.lock.lock();
  emulator.changed.wait(call.lock, [&] { return !emulator.held; });
  call.lock.unlock();
  if (got > 0) emulator.driver.write(to, bounce.data(), static_cast<size_t>(got));
  call.lock.lock();
  emulator.driver.release(to);
  --emulator.counters.in_flight;
  --file->in_flight;
  if (buffer != nullptr) --buffer->in_flight;
  if (got > 0) emulator.counters.bytes_read += static_cast<size_t>(got);
  emulator.changed.notify_all();
  if (got >= 0) return got + static_cast<ssize_t>(emulator.overstated);
  errno = static_cast<int>(-got);
  return -1;
}

}  // namespace fst::cufile
