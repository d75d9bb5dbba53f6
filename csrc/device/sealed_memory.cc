#include "device/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/fd.h"
#include "base/io_error.h"
#include "base/memfd.h"
#include "base/private_mapping.h"

namespace fst {
namespace {

// Without F_SEAL_SHRINK the exporter could take pages away, and to read them would crash.
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
constexpr size_t kMostWritten = size_t{1} << 30;  // by one call; the kernel takes up to 2 GiB
constexpr int64_t kBlock = 512;                   // of st_blocks

Status CannotWrite(int error) {
  if (error == ENOSPC || error == ENOMEM) {
    return Status(Code::OUT_OF_HOST_MEMORY, "there is no memory for a copy of the tensors to be exported: " +
                                                ErrnoText(error) + "; export and dispose them some at a time");
  }
  if (error == EFAULT) {
    return Status(Code::IO_ERROR,
                  "a mapped tensor cannot be read: its file was cut short (EFAULT); load it with "
                  "`mmap: false`",
                  error);
  }
  return Status(Code::IO_ERROR, "cannot write the tensors to be exported: " + ErrnoText(error), error);
}

Status WriteAt(int fd, const void* bytes, size_t length, uint64_t at) {
  for (size_t done = 0; done < length;) {
    const ssize_t wrote = pwrite(fd, static_cast<const char*>(bytes) + done, std::min(length - done, kMostWritten),
                                 static_cast<off_t>(at + done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return CannotWrite(wrote < 0 ? errno : ENOSPC);
    done += static_cast<size_t>(wrote);
  }
  return Status::Ok();
}

Status Refused(const std::string& what) {
  return Status(Code::INVALID_ARGUMENT, "the descriptor " + what + "; expected that of exportHandle(), unchanged");
}

}  // namespace

Status SealMemory(Device& host, const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                  std::shared_ptr<ExportedMemory>* out) {
  FST_RETURN_IF_ERROR(host.CheckAvailable(size));
  UniqueFd fd(NewMemfd("fastsafetensors"));
  if (!fd.valid()) {
    if (errno == ENOSYS || errno == EPERM)
      return Status(Code::PLATFORM_UNSUPPORTED, "memfd_create is not allowed here: " + ErrnoText(errno), errno);
    return Status(Code::IO_ERROR, "cannot make a memfd: " + ErrnoText(errno) + DescriptorRemedy(errno), errno);
  }
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return CannotWrite(errno);
  for (const auto& [buffer, offset, length, at] : parts)
    FST_RETURN_IF_ERROR(WriteAt(fd.get(), reinterpret_cast<const char*>(buffer->address()) + offset, length, at));
  FST_RETURN_IF_ERROR(WriteAt(fd.get(), seal.data(), seal.size(), size - seal.size()));
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0)
    return Status(Code::IO_ERROR, "cannot seal the memfd: " + ErrnoText(errno), errno);
  *out = std::make_shared<ExportedMemory>(std::move(fd), size, &Metrics::Get().host_bytes);
  return Status::Ok();
}

Status MapSealed(const std::shared_ptr<Device>& host, int fd, size_t size, const std::string& seal,
                 std::shared_ptr<DeviceBuffer>* out) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return Refused("is no memfd: " + ErrnoText(errno));
  if ((seals & kSeals) != kSeals) return Refused(Format("is a memfd without all seals (%#x of %#x)", seals, kSeals));
  struct stat found;
  if (fstat(fd, &found) != 0) return Status(Code::IO_ERROR, "cannot look at the memfd: " + ErrnoText(errno), errno);
  if (static_cast<uint64_t>(found.st_size) != size || size < seal.size()) {
    return Status(Code::METADATA_INCOMPLETE_BUFFER,
                  Format("the description says %zu bytes, but the memfd has %lld: it is that of another export", size,
                         static_cast<long long>(found.st_size)));
  }
  // Else every page that is read would be new memory, which may not be there.
  const off_t hole = lseek(fd, 0, SEEK_HOLE);  // blocks may also lie behind the end
  if (found.st_blocks * kBlock < found.st_size || (hole >= 0 && hole < found.st_size))
    return Refused("is a memfd with holes");
  std::string last(seal.size(), '\0');
  if (pread(fd, last.data(), last.size(), static_cast<off_t>(size - seal.size())) != static_cast<ssize_t>(last.size()))
    return Status(Code::IO_ERROR, "cannot read the memfd: " + ErrnoText(errno), errno);
  if (last != seal) return Refused("is that of another export than the description");
  std::unique_ptr<PrivateMapping> mapping;
  if (int error = PrivateMapping::Create(fd, {0, size}, &mapping)) {
    return Status(error == ENOMEM ? Code::OUT_OF_HOST_MEMORY : Code::IO_ERROR,
                  "cannot map the memfd: " + ErrnoText(error), error);
  }
  const auto address = reinterpret_cast<uint64_t>(mapping->At(0));
  auto held = std::make_shared<std::unique_ptr<PrivateMapping>>(std::move(mapping));
  *out = MakeBuffer(host, address, size, &Metrics::Get().mapped_bytes, [held] { held->reset(); });
  return Status::Ok();
}

}  // namespace fst
