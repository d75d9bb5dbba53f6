#include "reader/usrbio/usrbio_iov.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/exit_gate.h"
#include "base/fd.h"
#include "base/io_error.h"
#include "base/numa.h"
#include "base/warnings.h"

namespace fst::usrbio {
namespace {

// A random uuid, version 4.
Status NewUuid(char id[16]) {
  if (getrandom(id, 16, 0) != 16) return Status(Code::THREEFS_ERROR, "getrandom failed: " + ErrnoText(errno));
  id[6] = static_cast<char>((id[6] & 0x0f) | 0x40);
  id[8] = static_cast<char>((id[8] & 0x3f) | 0x80);
  return Status::Ok();
}

// A file in /dev/shm that has no name and goes with its last descriptor and mapping.
Status NewShmFile(UniqueFd* out) {
  *out = UniqueFd(open(kShm, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (out->valid()) return Status::Ok();
  const int error = errno;
  const std::string remedy = OutOfDescriptors(error) ? DescriptorRemedy(error) : ": it must be a writable tmpfs";
  return Status(Code::THREEFS_ERROR, Format("no file can be made in %s, through which 3FS passes data: %s%s", kShm,
                                            ErrnoText(error).c_str(), remedy.c_str()));
}

// ftruncate alone reserves nothing: a full /dev/shm would be a SIGBUS at the first touch.
int Allocate(const UniqueFd& fd, size_t size) {
  int error;
  do {
    error = posix_fallocate(fd.get(), 0, static_cast<off_t>(size));
  } while (error == EINTR);
  return error;
}

Status LinkFailed(const std::string& mount, const std::string& link, const std::string& target, int error) {
  FST_RETURN_IF_ERROR(ProbeMount(mount));
  const char* remedy = "";
  if (error == ENOENT || error == EINVAL || error == EACCES || error == EPERM) {
    remedy =
        "; the hf3fs_fuse daemon has to see the same /dev/shm as this process: share it with the container (docker run "
        "--ipc=host, or -v /dev/shm:/dev/shm)";
  }
  return Status(Code::THREEFS_ERROR,
                Format("the 3FS mount %s did not take the shared buffer %s (link %s): %s%s", mount.c_str(),
                       target.c_str(), link.c_str(), ErrnoText(error).c_str(), remedy));
}

// Announces the memory of `fd` by a link in the mount. The file has a name for that moment only, as the daemon opens it
// by name: a process that is killed, or exits, leaves nothing.
Status LinkMemory(const UniqueFd& fd, const std::string& mount, const std::string& link, std::string* target) {
  char id[16];
  FST_RETURN_IF_ERROR(NewUuid(id));
  *target = Format("%s/hf3fs-iov-%s", kShm, UuidText(id).c_str());
  const std::string self = "/proc/self/fd/" + std::to_string(fd.get());
  ExitGate::Call until_unlinked;
  if (!until_unlinked.open()) return Status(Code::CLOSED, "the process exits");
  if (linkat(AT_FDCWD, self.c_str(), AT_FDCWD, target->c_str(), AT_SYMLINK_FOLLOW) != 0) {
    return Status(Code::THREEFS_ERROR, Format("%s cannot be made: %s; 3FS passes data through %s, and /proc has to be "
                                              "mounted",
                                              target->c_str(), ErrnoText(errno).c_str(), kShm));
  }
  int error = symlink(target->c_str(), link.c_str()) == 0 ? 0 : errno;
  unlink(target->c_str());
  return error == 0 ? Status::Ok() : LinkFailed(mount, link, *target, error);
}

}  // namespace

Status NoRoomInShm(const char* what, size_t bytes, int error) {
  struct statvfs fs;
  unsigned long long free_bytes = statvfs(kShm, &fs) == 0 ? uint64_t{fs.f_bavail} * fs.f_frsize : 0;
  return Status(Code::OUT_OF_HOST_MEMORY,
                Format("%s of %zu bytes does not fit into %s, which has %llu free: %s; enlarge it (mount "
                       "-o remount,size=…, docker run --shm-size or --ipc=host), remove what is left there, or lower "
                       "bufferSize",
                       what, bytes, kShm, free_bytes, ErrnoText(error).c_str()));
}

Status ReserveShm(size_t bytes, UniqueFd* out) {
  FST_RETURN_IF_ERROR(NewShmFile(out));
  int error = Allocate(*out, bytes);
  return error == 0 ? Status::Ok() : NoRoomInShm("the I/O ring", bytes, error);
}

std::string UuidText(const char id[16]) {
  std::string text;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += Format("%02x", static_cast<unsigned char>(id[i]));
  }
  return text;
}

Status AddressRange::Reserve(size_t size, std::unique_ptr<AddressRange>* out) {
  void* base = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return Status(Code::OUT_OF_HOST_MEMORY, Format("%zu bytes of address space for the shared buffer: %s; lower "
                                                   "bufferSize",
                                                   size, ErrnoText(errno).c_str()));
  }
  out->reset(new AddressRange(static_cast<uint8_t*>(base), size));
  return Status::Ok();
}

AddressRange::~AddressRange() { munmap(base_, size_); }

Status SharedIov::Create(const UsrbioApi& api, const std::string& mount, int numa, const AddressRange& range,
                         UniqueFd pages, std::unique_ptr<SharedIov>* out) {
  UniqueFd fd = std::move(pages);
  if (!fd.valid()) {
    FST_RETURN_IF_ERROR(NewShmFile(&fd));
    PreferNode near(numa);
    int error = Allocate(fd, range.size());
    if (error != 0) return NoRoomInShm("the shared buffer", range.size(), error);
  }
  std::unique_ptr<SharedIov> made(new SharedIov(range));
  // Not MAP_POPULATE: the kernel clears each page when it is first used, while other reads wait for the daemon.
  void* memory = mmap(range.base(), range.size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd.get(), 0);
  if (memory == MAP_FAILED) {
    return Status(Code::OUT_OF_HOST_MEMORY, Format("the shared buffer of %zu bytes cannot be mapped: %s", range.size(),
                                                   ErrnoText(errno).c_str()));
  }
  made->mapped_ = true;

  char id[16];
  FST_RETURN_IF_ERROR(NewUuid(id));
  std::string link = mount + "/3fs-virt/iovs/" + UuidText(id), target;
  FST_RETURN_IF_ERROR(LinkMemory(fd, mount, link, &target));
  made->link_ = {link, target};
  // Block size 0 is one block: no read is refused for crossing a boundary inside the iov.
  int wrapped =
      api.iovwrap(&made->iov_, memory, reinterpret_cast<const uint8_t*>(id), mount.c_str(), range.size(), 0, numa);
  if (wrapped != 0) return MountError(mount, -wrapped, "hf3fs_iovwrap failed");
  *out = std::move(made);
  return Status::Ok();
}

bool SharedIov::Unlink() {
  if (link_.path.empty()) return true;
  if (unlink(link_.path.c_str()) != 0 && errno == EROFS) {
    Warn(
        Format("the 3FS mount %s is mounted read-only, and its daemon removes no links there (EROFS): shared memory of "
               "loaders is kept for later ones, and the daemon holds it until this process ends; mount without "
               "readonly to avoid that",
               iov_.mount_point));
    return false;
  }
  link_.path.clear();  // removed, or gone with its daemon
  return true;
}

SharedIov::~SharedIov() {
  (void)Unlink();
  // The range stays reserved; its pages are released.
  if (!mapped_) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  (void)mmap(range_.base(), range_.size(), PROT_NONE, flags, -1, 0);  // else they are released with the range
}

}  // namespace fst::usrbio
