// What the GDS reader opens and holds: files with their handles, and page-locked memory for those that cuFile refuses.
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

// Shared by reader, files and tasks on threads.
struct GdsContext {
  std::shared_ptr<CudaDevice> device;
  const cufile::CufileApi* api = nullptr;
};

class GdsFile : public FdFile {
 public:
  // Takes the descriptor; `handle` is null for a file that cuFile refused.
  GdsFile(const std::string& path, const FileIdentity& identity, std::shared_ptr<GdsContext> context, UniqueFd fd,
          void* handle)
      : FdFile(path, identity, std::move(fd)), context_(std::move(context)), handle_(handle) {}
  ~GdsFile() override;

  void* handle() const { return handle_; }
  // A descriptor without O_DIRECT, for reads by the host. Any thread.
  Status HostFd(int* fd);

  bool compatible = false;           // cuFile reads it through the host
  std::atomic<bool> served{false};   // cuFile has read of it: a refusal from now on is an error
  std::atomic<bool> refused{false};  // the host reads it

 private:
  std::shared_ptr<GdsContext> context_;
  void* handle_;
  std::mutex mutex_;
  UniqueFd host_fd_;
};

// Registers an open file with cuFile. `*handle` is null and `*refusal` says why when cuFile does not take files like
// it; GDS_ERROR for failures of another kind.
Status RegisterFile(const GdsContext& context, int fd, const std::string& path, void** handle, std::string* refusal);

// Page-locked buffers, each with a stream, that are made when needed and reused.
class GdsBounce {
 public:
  explicit GdsBounce(std::shared_ptr<GdsContext> context) : context_(std::move(context)) {}
  // Nothing is in progress any more.
  ~GdsBounce();

  // Reads `required` bytes of the file from `offset` by the host and copies them to device memory; returns when they
  // are there, or when no copy touches the device memory any more. The device's context is current. Any thread.
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
