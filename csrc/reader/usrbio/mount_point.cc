#include "reader/usrbio/mount_point.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace fst {
namespace {

// 0 when `folder` holds a folder 3fs-virt, else an errno.
int ProbeVirtual(const std::string& folder) { return ProbeFolder(JoinPath(folder, "3fs-virt")); }

}  // namespace

bool MountTypesAreUnchecked() {
  const char* unchecked = getenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
  return unchecked != nullptr && strcmp(unchecked, "yes") == 0;
}

Status ExtractMountPoint(const std::string& path, std::string* out, const std::vector<Mount>* given) {
  if (path.empty()) return Status(Code::INVALID_ARGUMENT, "expected a path on a 3FS mount, found an empty string");
  if (path.find('\0') != std::string::npos)
    return Status(Code::INVALID_ARGUMENT, "expected a path, found one with a NUL character");
  std::string resolved;
  FST_RETURN_IF_ERROR(ResolvePath(path, &resolved).At(path));

  if (MountTypesAreUnchecked()) {
    for (std::string folder = resolved;; folder = ParentOf(folder)) {
      if (ProbeVirtual(folder) == 0) {
        *out = folder;
        return Status::Ok();
      }
      if (folder == "/") break;
    }
  }

  const std::vector<Mount> mounts = given == nullptr ? CurrentMounts() : *given;
  if (mounts.empty()) {
    return Status(Code::IO_ERROR,
                  "/proc/self/mountinfo cannot be read, so no path's mount is known; is /proc mounted?");
  }
  const Mount* own = MountHolding(resolved, mounts);
  if (own == nullptr) return Status(Code::IO_ERROR, "no entry of /proc/self/mountinfo holds this path").At(path);

  int probe = ENOENT;
  if (own->is_3fs()) {
    probe = ProbeVirtual(own->point);
    std::string best = probe == 0 ? own->point : "";
    for (const Mount& mount : mounts) {
      bool is_virtual = mount.point.size() > 9 && mount.point.compare(mount.point.size() - 9, 9, "/3fs-virt") == 0;
      std::string parent = ParentOf(mount.point);
      if (is_virtual && mount.is_3fs() && IsUnder(resolved, parent) && parent.size() > best.size()) best = parent;
    }
    // A folder of a 3FS that is mounted by itself (bound into a container) is served by any whole mount of that 3FS.
    for (const Mount& mount : mounts) {
      if (!best.empty()) break;
      bool same = mount.is_3fs() && mount.device == own->device && mount.point != own->point;
      if (same && ProbeVirtual(mount.point) == 0) best = mount.point;
    }
    if (!best.empty()) {
      *out = best;
      return Status::Ok();
    }
    if (MeansDaemonGone(probe)) {
      return Status(Code::THREEFS_DISCONNECTED,
                    Format("%s: the 3FS mount %s does not answer: %s; restart its hf3fs_fuse daemon", path.c_str(),
                           own->point.c_str(), ErrnoText(probe).c_str()),
                    probe)
          .At(path);
    }
  }
  const std::string lost = LostThreeFs(resolved, mounts);
  if (!lost.empty()) {
    return Status(Code::THREEFS_DISCONNECTED,
                  Format("%s: the 3FS that was mounted on %s is not there any more; restart its hf3fs_fuse daemon",
                         path.c_str(), lost.c_str()),
                  ENOENT)
        .At(path);
  }
  std::string found = Format("%s on %s", own->type.c_str(), own->point.c_str());
  if (own->is_3fs()) found += " without a folder 3fs-virt: " + ErrnoText(probe);
  return Status(Code::NOT_3FS,
                Format("%s: expected a path on a 3FS mount (fuse.hf3fs with 3fs-virt in it), found %s; give a path on "
                       "3FS, or another copier",
                       path.c_str(), found.c_str()))
      .At(path);
}

}  // namespace fst
