// The GDS reader's files with their cuFile handles, and the bounce buffers for files that cuFile refuses.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/cuda_device.h"
#include "reader/gds/cufile_api.h"
#include "reader/open_file.h"

namespace fst {

// Shared by the reader, its files and its pool threads.
struct GdsContext {
  std::shared_ptr<CudaDevice> device;
  const cufile::CufileApi* api = nullptr;
};

class GdsFile : public FdFile {
 public:
  // `handle` is null for a file that cuFile refused.
  GdsFile(const std::string& path, const FileIdentity& identity, std::shared_ptr<GdsContext> context, UniqueFd fd,
          void* handle)
      : FdFile(path, identity, std::move(fd)), context_(std::move(context)), handle_(handle) {}
  ~GdsFile() override;  // deregisters the handle before the descriptor is closed

  void* handle() const { return handle_; }
  // A descriptor without O_DIRECT, for reads by the host. Any thread.
  Status HostFd(int* fd);

  bool compatible = false;           // cuFile reads it through the host (compatibility mode)
  std::atomic<bool> served{false};   // cuFile has read from it: a refusal is now an error
  std::atomic<bool> refused{false};  // cuFile refused it: the host reads it

 private:
  std::shared_ptr<GdsContext> context_;
  void* handle_;
  std::mutex mutex_;
  UniqueFd host_fd_;
};

// Registers an open file with cuFile. OK with a null `*handle`, and the reason in `*refusal`, when cuFile does not
// support such files; GDS_ERROR for other failures.
Status RegisterFile(const GdsContext& context, int fd, const std::string& path, void** handle, std::string* refusal);

// A pool of page-locked bounce buffers, each with its stream; allocated on demand and reused.
class GdsBounce {
 public:
  explicit GdsBounce(std::shared_ptr<GdsContext> context) : context_(std::move(context)) {}
  // No Read may be in progress.
  ~GdsBounce();

  // Reads `required` bytes of the file at `offset` with pread and copies them to device memory. Returns when they have
  // arrived or, on failure, when no copy touches that memory any more. Any thread with a current context; blocks.
  Status Read(GdsFile& file, uint64_t offset, size_t required, uint64_t destination);

 private:
  struct Buffer {
    std::unique_ptr<StagingMemory> memory;
    cuda::CUstream stream;
  };
  Status Take(Buffer* out);

  std::shared_ptr<GdsContext> context_;
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

}  // namespace fst
