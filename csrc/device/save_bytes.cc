#include "device/save_bytes.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>

#include "base/io_error.h"
#include "device/host_memory.h"

namespace fst {
namespace {

constexpr size_t kMaxWrite = size_t{8} << 20;   // of one pwrite(2), for the disk to begin with
constexpr size_t kSavePiece = size_t{4} << 20;  // bytes of a device in host memory at a time

}  // namespace

Status WriteFully(const char* bytes, size_t length, const FilePlace& place) {
  for (size_t done = 0; done < length;) {
    const size_t most = std::min(length - done, kMaxWrite);
    const off_t position = place.position + static_cast<off_t>(done);
    const ssize_t written = pwrite(place.fd, bytes + done, most, position);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return IoError(place.path, "cannot write " + place.path, errno);
    if (written == 0) return Status(Code::IO_ERROR, Format("cannot write %s: no byte was taken", place.path.c_str()));
    done += static_cast<size_t>(written);
    // Only a hint: it waits for no byte, and errors of the disk are those of the sync.
    if (place.write_back) (void)sync_file_range(place.fd, position, written, SYNC_FILE_RANGE_WRITE);
  }
  return Status::Ok();
}

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
