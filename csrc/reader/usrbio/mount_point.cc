#include "reader/usrbio/mount_point.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

namespace fst {
namespace {

struct Mount {
  std::string device, point, type;  // `device`, as "0:45", is the same for all mounts of one file system
};

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

// A line is "id parent major:minor root point options [optional…] - type source super-options" (proc(5)).
std::vector<Mount> ParseMountinfo(const std::string& content) {
  std::vector<Mount> mounts;
  std::istringstream in(content);
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    std::string field, device, point;
    fields >> field >> field >> device >> field >> point;
    while (fields >> field && field != "-") {
    }
    if (fields >> field && !point.empty()) mounts.push_back({device, DecodeOctal(point), DecodeOctal(field)});
  }
  return mounts;
}

// True when `path` is `folder` or in it; both absolute and normal.
bool IsUnder(const std::string& path, const std::string& folder) {
  if (folder == "/") return true;
  return path.compare(0, folder.size(), folder) == 0 && (path.size() == folder.size() || path[folder.size()] == '/');
}

std::string Parent(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

std::string Join(const std::string& folder, const std::string& name) {
  return (folder == "/" ? "" : folder) + "/" + name;
}

// 0 when `folder` holds a folder 3fs-virt, else an errno.
int ProbeVirtual(const std::string& folder) {
  struct stat st;
  if (stat(Join(folder, "3fs-virt").c_str(), &st) != 0) return errno;
  return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
}

// realpath of the longest existing parent, then the rest with "." and ".." resolved lexically. A dead mount's folder
// does not exist for realpath, so its path stays as it is written.
Status Resolve(const std::string& path, std::string* out) {
  std::string existing = path;
  if (path[0] != '/') {
    char cwd[PATH_MAX];
    if (getcwd(cwd, sizeof cwd) == nullptr) return Status(Code::IO_ERROR, "getcwd failed: " + ErrnoText(errno));
    existing = Join(cwd, path);
  }
  std::vector<std::string> rest;
  for (;;) {
    if (char* real = realpath(existing.c_str(), nullptr)) {
      *out = real;
      free(real);
      break;
    }
    if (existing == "/") return Status(Code::IO_ERROR, "realpath(\"/\") failed: " + ErrnoText(errno));
    while (existing.size() > 1 && existing.back() == '/') existing.pop_back();
    size_t slash = existing.rfind('/');
    rest.push_back(existing.substr(slash + 1));
    existing = slash == 0 ? "/" : existing.substr(0, slash);
  }
  for (auto name = rest.rbegin(); name != rest.rend(); ++name) {
    if (name->empty() || *name == ".") continue;
    *out = *name == ".." ? Parent(*out) : Join(*out, *name);
  }
  return Status::Ok();
}

// A dead daemon's mount answers ENOTCONN, one that was aborted ECONNABORTED.
bool IsDisconnected(int error) { return error == ENOTCONN || error == ECONNABORTED; }

}  // namespace

std::string ReadMountinfo() {
  std::ifstream in("/proc/self/mountinfo");
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

bool MountTypesAreUnchecked() {
  const char* unchecked = getenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
  return unchecked != nullptr && strcmp(unchecked, "yes") == 0;
}

Status ExtractMountPoint(const std::string& path, std::string* out, const std::string* mountinfo) {
  if (path.empty()) return Status(Code::INVALID_ARGUMENT, "expected a path on a 3FS mount, found an empty string");
  if (path.find('\0') != std::string::npos)
    return Status(Code::INVALID_ARGUMENT, "expected a path, found one with a NUL character");
  std::string resolved;
  FST_RETURN_IF_ERROR(Resolve(path, &resolved).At(path));

  if (MountTypesAreUnchecked()) {
    for (std::string folder = resolved;; folder = Parent(folder)) {
      if (ProbeVirtual(folder) == 0) {
        *out = folder;
        return Status::Ok();
      }
      if (folder == "/") break;
    }
  }

  std::string content;
  if (mountinfo == nullptr) {
    content = ReadMountinfo();
    mountinfo = &content;
  }
  if (mountinfo->empty()) {
    return Status(Code::IO_ERROR,
                  "/proc/self/mountinfo cannot be read, so no path's mount is known; is /proc mounted?");
  }
  std::vector<Mount> mounts = ParseMountinfo(*mountinfo);
  const Mount* own = nullptr;
  for (const Mount& mount : mounts) {
    // Of two mounts on one folder the later one covers the former.
    if (IsUnder(resolved, mount.point) && (own == nullptr || mount.point.size() >= own->point.size())) own = &mount;
  }
  if (own == nullptr) return Status(Code::IO_ERROR, "no entry of /proc/self/mountinfo holds this path").At(path);

  int probe = ENOENT;
  if (own->type == "fuse.hf3fs") {
    probe = ProbeVirtual(own->point);
    std::string best = probe == 0 ? own->point : "";
    for (const Mount& mount : mounts) {
      bool is_virtual = mount.point.size() > 9 && mount.point.compare(mount.point.size() - 9, 9, "/3fs-virt") == 0;
      std::string parent = Parent(mount.point);
      if (is_virtual && mount.type == "fuse.hf3fs" && IsUnder(resolved, parent) && parent.size() > best.size())
        best = parent;
    }
    // A folder of a 3FS that is mounted by itself (bound into a container) is served by any whole mount of that 3FS.
    for (const Mount& mount : mounts) {
      if (!best.empty()) break;
      bool same = mount.type == "fuse.hf3fs" && mount.device == own->device && mount.point != own->point;
      if (same && ProbeVirtual(mount.point) == 0) best = mount.point;
    }
    if (!best.empty()) {
      *out = best;
      return Status::Ok();
    }
    if (IsDisconnected(probe)) {
      return Status(Code::THREEFS_DISCONNECTED,
                    Format("%s: the 3FS mount %s does not answer: %s; restart its hf3fs_fuse daemon", path.c_str(),
                           own->point.c_str(), ErrnoText(probe).c_str()))
          .At(path);
    }
  }
  std::string found = Format("%s on %s", own->type.c_str(), own->point.c_str());
  if (own->type == "fuse.hf3fs") found += " without a folder 3fs-virt: " + ErrnoText(probe);
  return Status(Code::NOT_3FS,
                Format("%s: expected a path on a 3FS mount (fuse.hf3fs with 3fs-virt in it), found %s; give a path on "
                       "3FS, or another copier",
                       path.c_str(), found.c_str()))
      .At(path);
}

}  // namespace fst
