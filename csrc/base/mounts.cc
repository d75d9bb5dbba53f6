#include "base/mounts.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <mutex>
#include <set>

#include "base/text.h"

namespace fst {
namespace {

constexpr int kMaxLinks = 40;  // as the kernel follows

struct Seen {
  std::mutex mutex;
  std::set<dev_t> devices;
  std::set<std::string> three_fs;  // mount points
};

Seen& SeenMounts() {
  static Seen* seen = new Seen;  // never destroyed: threads that outlive main() may use it
  return *seen;
}

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string DecodeOctal(const std::string& text) {
  std::string decoded;
  auto octal = [&text](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '7'; };
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      decoded += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

// Puts the names of a path before those that are left.
void Prepend(const std::string& path, std::deque<std::string>* left) {
  const std::vector<std::string> names = Split(path, "/");
  left->insert(left->begin(), names.begin(), names.end());
}

}  // namespace

std::string ReadMountinfo() { return ReadText("/proc/self/mountinfo"); }

// A line is "id parent major:minor root point options [optional…] - type source super-options" (proc(5)).
std::vector<Mount> ParseMountinfo(const std::string& content) {
  std::vector<Mount> mounts;
  for (const std::string& line : Split(content, "\n")) {
    const std::vector<std::string> fields = Split(line, " ");
    if (fields.size() < 5) continue;
    auto dash = std::find(fields.begin() + 5, fields.end(), "-");
    if (fields.end() - dash < 2) continue;
    mounts.push_back({fields[2], DecodeOctal(fields[4]), DecodeOctal(dash[1])});
  }
  return mounts;
}

std::vector<Mount> CurrentMounts() {
  std::vector<Mount> mounts = ParseMountinfo(ReadMountinfo());
  std::lock_guard<std::mutex> lock(SeenMounts().mutex);
  for (const Mount& mount : mounts) {
    if (mount.is_3fs()) SeenMounts().three_fs.insert(mount.point);
  }
  return mounts;
}

void NoteDevice(dev_t device) {
  {
    std::lock_guard<std::mutex> lock(SeenMounts().mutex);
    if (!SeenMounts().devices.insert(device).second) return;
  }
  (void)CurrentMounts();
}

bool IsUnder(const std::string& path, const std::string& folder) {
  if (folder == "/") return true;
  return path.compare(0, folder.size(), folder) == 0 && (path.size() == folder.size() || path[folder.size()] == '/');
}

std::string ParentOf(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  return (folder == "/" ? "" : folder) + "/" + name;
}

Status ResolvePath(const std::string& path, std::string* out) {
  std::deque<std::string> left;
  Prepend(path, &left);
  if (path.empty() || path[0] != '/') {
    char cwd[PATH_MAX];
    if (getcwd(cwd, sizeof cwd) == nullptr) return Status(Code::IO_ERROR, "getcwd failed: " + ErrnoText(errno), errno);
    Prepend(cwd, &left);
  }
  *out = "/";
  size_t unknown = 0;  // the length of what cannot be looked at, with its folder; 0: nothing yet
  for (int links = 0; !left.empty();) {
    const std::string name = left.front();
    left.pop_front();
    if (name == ".") continue;
    if (name == "..") {
      *out = ParentOf(*out);
      if (out->size() < unknown) unknown = 0;
      continue;
    }
    std::string next = JoinPath(*out, name);
    char target[PATH_MAX];
    ssize_t length = unknown > 0 ? -1 : readlink(next.c_str(), target, sizeof target);
    if (length >= 0) {
      if (++links > kMaxLinks) return Status(Code::IO_ERROR, path + ": " + ErrnoText(ELOOP), ELOOP).At(path);
      if (target[0] == '/') *out = "/";
      Prepend(std::string(target, static_cast<size_t>(length)), &left);
      continue;
    }
    if (unknown == 0 && errno != EINVAL) unknown = next.size();  // EINVAL: it is there, and no symlink
    *out = std::move(next);
  }
  return Status::Ok();
}

const Mount* MountHolding(const std::string& resolved, const std::vector<Mount>& mounts) {
  const Mount* own = nullptr;
  for (const Mount& mount : mounts) {
    // Of two mounts on one folder the later one covers the former.
    if (IsUnder(resolved, mount.point) && (own == nullptr || mount.point.size() >= own->point.size())) own = &mount;
  }
  return own;
}

std::string LostThreeFs(const std::string& resolved, const std::vector<Mount>& mounts) {
  const Mount* own = MountHolding(resolved, mounts);
  if (own != nullptr && own->is_3fs()) return "";
  std::string lost;
  std::lock_guard<std::mutex> lock(SeenMounts().mutex);
  for (const std::string& point : SeenMounts().three_fs) {
    const bool covered = own != nullptr && own->point.size() >= point.size();  // by another file system
    if (!covered && IsUnder(resolved, point) && point.size() > lost.size()) lost = point;
  }
  return lost;
}

int ProbeFolder(const std::string& path) {
  struct statx fresh;
  if (statx(AT_FDCWD, path.c_str(), AT_STATX_FORCE_SYNC, STATX_TYPE, &fresh) == 0)
    return S_ISDIR(fresh.stx_mode) ? 0 : ENOTDIR;
  struct stat cached;  // where a container forbids statx
  if (errno != ENOSYS && errno != EPERM) return errno;
  if (stat(path.c_str(), &cached) != 0) return errno;
  return S_ISDIR(cached.st_mode) ? 0 : ENOTDIR;
}

bool IsOnThreeFs(const std::string& path) {
  std::string resolved;
  if (!ResolvePath(path, &resolved).ok()) return false;
  const std::vector<Mount> mounts = CurrentMounts();
  const Mount* own = MountHolding(resolved, mounts);
  return own != nullptr && own->is_3fs();
}

bool MeansDaemonGone(int error) { return error == ENOTCONN || error == ECONNABORTED || error == ESTALE; }

std::string DeadThreeFs(const std::string& path, int error) {
  const bool absent = error == ENOENT || error == ENOTDIR;
  if (absent) {
    std::lock_guard<std::mutex> lock(SeenMounts().mutex);
    if (SeenMounts().three_fs.empty()) return "";
  }
  std::string resolved;
  if ((!absent && !MeansDaemonGone(error)) || !ResolvePath(path, &resolved).ok()) return "";
  const std::vector<Mount> mounts = CurrentMounts();
  const Mount* own = MountHolding(resolved, mounts);
  if (own != nullptr && own->is_3fs()) return absent ? "" : own->point;
  return LostThreeFs(resolved, mounts);
}

}  // namespace fst
