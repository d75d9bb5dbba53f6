#include "reader/usrbio/usrbio_preflight.h"

#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "reader/usrbio/mount_point.h"
#include "reader/usrbio/usrbio_api.h"

namespace fst::usrbio {
namespace {

constexpr uint64_t kUsualBuffer = uint64_t{48} << 20;

// The folder of the file behind a path, symlinks resolved; "" when that fails. Files of one folder are on one mount.
std::string RealFolder(const std::string& path) {
  char real[PATH_MAX];
  if (realpath(path.c_str(), real) == nullptr) return "";
  std::string text = real;
  return text.substr(0, text.rfind('/') + 1);
}

bool AnyMount() {
  const std::vector<Mount> mounts = CurrentMounts();
  return MountTypesAreUnchecked() ||
         std::any_of(mounts.begin(), mounts.end(), [](const Mount& mount) { return mount.is_3fs(); });
}

}  // namespace

Status ResolveMount(const std::vector<std::string>& paths, const std::string& mount_point, bool all,
                    FilesOnMount* out) {
  *out = {};
  const std::vector<Mount> mounts = CurrentMounts();
  if (!mount_point.empty()) FST_RETURN_IF_ERROR(ExtractMountPoint(mount_point, &out->mount_point, &mounts));
  std::map<std::string, std::string> mount_of;  // by folder
  for (const std::string& path : paths) {
    if (!all && !out->not_on_mount.empty()) break;
    std::string folder = RealFolder(path), mount;
    auto found = mount_of.find(folder);
    if (!folder.empty() && found != mount_of.end()) {
      mount = found->second;
    } else {
      Status on = ExtractMountPoint(path, &mount, &mounts);
      if (!on.ok()) {
        out->not_on_mount.push_back({path, on});
        continue;
      }
      mount_of[folder] = mount;
    }
    if (out->mount_point.empty()) out->mount_point = mount;
    if (mount != out->mount_point) {
      out->not_on_mount.push_back(
          {path, Status(Code::NOT_3FS, Format("%s: expected a path on the 3FS mount %s, found one on "
                                              "%s; load what is on it separately",
                                              path.c_str(), out->mount_point.c_str(), mount.c_str()))
                     .At(path)});
      continue;
    }
    struct stat st;
    if (out->block_bytes == 0 && stat(path.c_str(), &st) == 0) out->block_bytes = static_cast<uint64_t>(st.st_blksize);
  }
  return Status::Ok();
}

Availability CheckAvailability() {
  Availability result;
  auto no = [&result](std::string reason, std::string remedy) {
    result.reason = std::move(reason);
    result.remedy = std::move(remedy);
    return result;
  };
  const UsrbioApi* api = nullptr;
  Status loaded = LoadUsrbio(&api);
  result.library = loaded.ok() ? api->library : FindHf3fsLibrary();
  if (!loaded.ok())
    return no(loaded.message(), "install the 3FS client, or set FASTSAFETENSORS_3FS_LIB to its library");
  if (!AnyMount()) {
    return no("no 3FS is mounted: /proc/self/mountinfo has no mount of type fuse.hf3fs",
              "mount 3FS (hf3fs_fuse), or make its mount visible in this container");
  }
  struct statvfs shm;
  if (statvfs("/dev/shm", &shm) != 0 || access("/dev/shm", W_OK | X_OK) != 0) {
    return no("/dev/shm is not there or not writable: 3FS passes data through it",
              "mount a tmpfs there and share it with the hf3fs_fuse daemon (docker run --ipc=host)");
  }
  uint64_t room = uint64_t{shm.f_bavail} * shm.f_frsize;
  if (room < kUsualBuffer) {
    return no(Format("/dev/shm has %llu bytes free, the shared buffer takes %llu",
                     static_cast<unsigned long long>(room), static_cast<unsigned long long>(kUsualBuffer)),
              "enlarge it (mount -o remount,size=…, docker run --shm-size), or set bufferSize lower");
  }
  rlimit locked;
  if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0 && locked.rlim_cur < kUsualBuffer) {
    result.reason = Format(
        "locked memory is limited to %llu bytes here: if the hf3fs_fuse daemon has the same limit, it cannot register "
        "the shared buffer of %llu bytes (EACCES); ulimit -l unlimited, or set bufferSize lower",
        static_cast<unsigned long long>(locked.rlim_cur), static_cast<unsigned long long>(kUsualBuffer));
  }
  result.available = true;
  return result;
}

}  // namespace fst::usrbio
