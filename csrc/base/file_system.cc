#include "base/file_system.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstdint>

namespace fst {
namespace {

// Of those that linux/magic.h leaves out.
constexpr uint32_t kXfs = 0x58465342, kErofs = 0xE0F5E1E2, kZfs = 0x2FC12FC1, kBcachefs = 0xCA451A4E;

}  // namespace

int FileSystemOf(int fd, FileSystemTraits* out) {
  FileSystemTraits& traits = *out;
  traits = {};
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return errno;
  switch (static_cast<uint32_t>(info.f_type)) {
    case EXT4_SUPER_MAGIC:  // ext2 and ext3, too
    case kXfs:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
      traits.on_disk = traits.leases_protect = traits.answers_at_once = true;
      break;
    case kBcachefs:
      traits.on_disk = traits.leases_protect = true;
      break;
    case kZfs:
      traits.leases_protect = true;
      break;
    case OVERLAYFS_SUPER_MAGIC:
      traits.on_disk = traits.answers_at_once = true;
      break;
    case TMPFS_MAGIC:
      traits.leases_protect = traits.answers_at_once = traits.in_memory = true;
      break;
    case SQUASHFS_MAGIC:
    case kErofs:
      traits.read_only = true;
      break;
    default:
      break;
  }
  return 0;
}

}  // namespace fst
