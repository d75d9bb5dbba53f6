#include "reader/gds/gds_file.h"

#include <algorithm>
#include <cerrno>

namespace fst {
namespace {

constexpr size_t kBounceBytes = size_t{4} << 20;

}  // namespace

GdsFile::~GdsFile() {
  if (handle_ == nullptr) return;
  context_->device->MakeCurrentForRelease();
  context_->api->HandleDeregister(handle_);
}

Status GdsFile::HostFd(int* fd) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!host_fd_.valid()) FST_RETURN_IF_ERROR(OpenUnchanged(path(), 0, identity(), &host_fd_));
  *fd = host_fd_.get();
  return Status::Ok();
}

Status RegisterFile(const GdsContext& context, int fd, const std::string& path, void** handle, std::string* refusal) {
  cufile::CUfileDescr description = {};
  description.type = cufile::kHandleTypeOpaqueFd;
  description.handle.fd = fd;
  *handle = nullptr;
  cufile::CUfileError result = context.api->HandleRegister(handle, &description);
  if (result.err == cufile::kSuccess) return Status::Ok();
  *handle = nullptr;
  Status failed = cufile::CufileApi::Check(result, "cuFileHandleRegister");
  if (!cufile::IsRefusal(result.err)) return Status(failed.code(), path + ": " + failed.message()).At(path);
  *refusal = failed.message();
  return Status::Ok();
}

GdsBounce::~GdsBounce() {
  if (free_.empty()) return;
  context_->device->MakeCurrentForRelease();
  for (Buffer& buffer : free_) context_->device->api().StreamDestroy(buffer.stream);
}

Status GdsBounce::Take(Buffer* out) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      *out = std::move(free_.back());
      free_.pop_back();
      return Status::Ok();
    }
  }
  FST_RETURN_IF_ERROR(context_->device->AllocateStaging(kBounceBytes, &out->memory));
  return FST_CUDA_CHECK(context_->device->api(), StreamCreate, &out->stream, cuda::kStreamNonBlocking);
}

Status GdsBounce::Read(GdsFile& file, uint64_t offset, size_t required, uint64_t destination) {
  int fd = -1;
  FST_RETURN_IF_ERROR(file.HostFd(&fd));
  Buffer buffer;
  FST_RETURN_IF_ERROR(Take(&buffer));
  const cuda::CudaApi& api = context_->device->api();
  auto* memory = reinterpret_cast<char*>(buffer.memory->address());  // NOLINT(performance-no-int-to-ptr)
  Status status;
  for (size_t done = 0; done < required && status.ok();) {
    ssize_t got = pread(fd, memory, std::min(required - done, kBounceBytes), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      status = ReadFailed(file, offset + done, required - done, errno);
    } else if (got == 0) {
      status = EndedEarly(file, offset, done, required);
    } else {
      auto bytes = static_cast<size_t>(got);
      status = FST_CUDA_CHECK(api, MemcpyHtoDAsync, destination + done, memory, bytes, buffer.stream);
      Status arrived = FST_CUDA_CHECK(api, StreamSynchronize, buffer.stream);
      // After a failure the copy may still be running, and the buffer must not be reused before it ends.
      if (!arrived.ok()) api.StreamSynchronize(buffer.stream);
      if (status.ok()) status = arrived;
      done += bytes;
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(buffer));
  return status;
}

}  // namespace fst
