#include "device/save_bytes.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>

#include "base/io_error.h"
#include "device/host_memory.h"

namespace fst {
namespace {

constexpr size_t kMaxWrite = size_t{1} << 30;   // of one pwrite(2): 2 GiB and more are cut short
constexpr size_t kSavePiece = size_t{4} << 20;  // bytes of a device in host memory at a time

// IO_ERROR unless all of `length` bytes were written.
Status WriteFully(const char* bytes, size_t length, const FilePlace& place) {
  for (size_t done = 0; done < length;) {
    const size_t most = std::min(length - done, kMaxWrite);
    const ssize_t written = pwrite(place.fd, bytes + done, most, place.position + static_cast<off_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return IoError(place.path, "cannot write " + place.path, errno);
    if (written == 0) return Status(Code::IO_ERROR, Format("cannot write %s: no byte was taken", place.path.c_str()));
    done += static_cast<size_t>(written);
  }
  return Status::Ok();
}

}  // namespace

Status SaveBytes(const DeviceBuffer& buffer, size_t offset, size_t length, FilePlace place) {
  if (buffer.device().host_accessible())
    return WriteFully(reinterpret_cast<const char*>(buffer.address()) + offset, length, place);
  const size_t piece = std::min(length, kSavePiece);
  void* memory = nullptr;
  FST_RETURN_IF_ERROR(AllocateHost(std::max(piece, size_t{1}), &memory));
  const std::unique_ptr<void, std::function<void(void*)>> staging(
      memory, [size = std::max(piece, size_t{1})](void* dead) { FreeHost(dead, size); });
  for (size_t done = 0; done < length; done += piece) {
    const size_t part = std::min(piece, length - done);
    FST_RETURN_IF_ERROR(buffer.device().Read(buffer, offset + done, part, memory));
    FST_RETURN_IF_ERROR(WriteFully(static_cast<const char*>(memory), part, place));
    place.position += static_cast<off_t>(part);
  }
  return Status::Ok();
}

}  // namespace fst
