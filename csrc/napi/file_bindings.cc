// System calls on files for JavaScript, on the addon's own threads: one that hangs on a thread of libuv, as those of
// node:fs do, keeps the process from exiting.
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/io_error.h"
#include "base/mounts.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/header_values.h"
#include "reader/cold_files.h"
#include "reader/file_copy.h"

namespace fst {
namespace {

constexpr size_t kMaxRead = size_t{1} << 30;  // of one read(2): 2 GiB and more are refused

// "file", "folder", "link", or "other".
const char* KindOf(mode_t mode) {
  if (S_ISREG(mode)) return "file";
  if (S_ISDIR(mode)) return "folder";
  return S_ISLNK(mode) ? "link" : "other";
}

// statFile(path): Promise<{kind, size, dev, ino, mtimeNs}> of what the path leads to
Napi::Value StatFile(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<struct stat>();
  std::string path = info[0].As<Napi::String>();
  return AsyncWork::RunOnFile(
      info.Env(),
      [=] { return stat(path.c_str(), found.get()) == 0 ? Status::Ok() : IoError(path, "stat " + path, errno); },
      [found](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["kind"] = Napi::String::New(env, KindOf(found->st_mode));
        result["size"] = Napi::Number::New(env, static_cast<double>(found->st_size));
        result["dev"] = Napi::BigInt::New(env, static_cast<uint64_t>(found->st_dev));
        result["ino"] = Napi::BigInt::New(env, static_cast<uint64_t>(found->st_ino));
        const int64_t seconds = found->st_mtim.tv_sec;
        result["mtimeNs"] = Napi::BigInt::New(env, seconds * 1000000000 + found->st_mtim.tv_nsec);
        return result;
      });
}

// areCold(files: {path}[], ranges: Float64Array): Promise<boolean>; `ranges` has begin and end of the wanted bytes by
// file. See AreCold.
Napi::Value AreColdJs(const Napi::CallbackInfo& info) {
  auto list = info[0].As<Napi::Array>();
  auto ranges = info[1].As<Napi::Float64Array>();
  std::vector<WantedFile> files;
  for (uint32_t i = 0; i < list.Length() && 2 * size_t{i} + 1 < ranges.ElementLength(); ++i) {
    Napi::HandleScope scope(info.Env());
    const double begin = ranges[2 * size_t{i}], end = ranges[2 * size_t{i} + 1];
    if (begin >= end) continue;
    std::string path = list.Get(i).As<Napi::Object>().Get("path").As<Napi::String>();
    files.push_back({std::move(path), static_cast<uint64_t>(begin), static_cast<uint64_t>(end)});
  }
  auto cold = std::make_shared<bool>(false);
  return AsyncWork::RunOnFile(
      info.Env(),
      [files = std::move(files), cold] {
        *cold = AreCold(files);
        return Status::Ok();
      },
      [cold](Napi::Env env) { return Napi::Boolean::New(env, *cold); });
}

struct Entries {
  std::vector<std::string> names;
  std::vector<const char*> kinds;
};

Status List(const std::string& folder, Entries* out) {
  DIR* dir = opendir(folder.c_str());
  if (dir == nullptr) return IoError(folder, "list " + folder, errno);
  int error = 0;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir);
    if (entry == nullptr) {
      error = errno;
      break;
    }
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    mode_t mode = DTTOIF(entry->d_type);
    struct stat found;
    if (entry->d_type == DT_UNKNOWN && lstat(JoinPath(folder, name).c_str(), &found) == 0) mode = found.st_mode;
    out->names.push_back(name);
    out->kinds.push_back(KindOf(mode));
  }
  closedir(dir);
  if (error != 0) return IoError(folder, "list " + folder, error);
  // What was a 3FS is an empty folder when that is not mounted any more.
  const std::string lost = out->names.empty() ? DeadThreeFs(folder, ENOENT) : "";
  return lost.empty() ? Status::Ok() : IoError(folder, "list " + folder, ENOENT);
}

// listFolder(path): Promise<{names: string[], kinds: string[]}>, without "." and ".."
Napi::Value ListFolder(const Napi::CallbackInfo& info) {
  auto entries = std::make_shared<Entries>();
  std::string path = info[0].As<Napi::String>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return List(path, entries.get()); },
      [entries](Napi::Env env) {
        Napi::Array names = Napi::Array::New(env, entries->names.size());
        Napi::Array kinds = Napi::Array::New(env, entries->names.size());
        for (uint32_t i = 0; i < entries->names.size(); ++i) {
          Napi::HandleScope scope(env);
          names[i] = Napi::String::New(env, entries->names[i]);
          kinds[i] = Napi::String::New(env, entries->kinds[i]);
        }
        Napi::Object result = Napi::Object::New(env);
        result["names"] = names;
        result["kinds"] = kinds;
        return result;
      });
}

// The text that `read` makes of a path, on a worker.
template <class Read>
Napi::Value TextOf(Napi::Env env, const std::string& path, const char* what, Read read) {
  auto text = std::make_shared<std::string>();
  return AsyncWork::RunOnFile(
      env, [=] { return read(path.c_str(), text.get()) ? Status::Ok() : IoError(path, what + (" " + path), errno); },
      [text](Napi::Env on) { return Napi::String::New(on, *text); });
}

// realPath(path): Promise<string>, absolute and without symlinks
Napi::Value RealPath(const Napi::CallbackInfo& info) {
  return TextOf(info.Env(), info[0].As<Napi::String>(), "realpath", [](const char* path, std::string* out) {
    char* real = realpath(path, nullptr);
    if (real == nullptr) return false;
    *out = real;
    free(real);
    return true;
  });
}

// readLink(path): Promise<string>, where the symlink leads
Napi::Value ReadLinkJs(const Napi::CallbackInfo& info) {
  return TextOf(info.Env(), info[0].As<Napi::String>(), "readlink", [](const char* path, std::string* out) {
    char target[PATH_MAX];
    ssize_t length = readlink(path, target, sizeof target);
    if (length >= 0) out->assign(target, static_cast<size_t>(length));
    return length >= 0;
  });
}

struct Content {
  std::unique_ptr<uint8_t[]> bytes;
  size_t size = 0;
};

// As src/base/regular-file.ts calls it.
const char* NameOfKind(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a named pipe";
  return S_ISSOCK(mode) ? "a socket" : "a device";
}

Status ReadWhole(const std::string& path, double max_bytes, Content* out) {
  // O_NONBLOCK: opening a FIFO must not wait for its writer.
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  struct stat found;
  if (!fd.valid() || fstat(fd.get(), &found) != 0) return IoError(path, "open " + path, errno);
  auto wrong = [&path](const std::string& what) { return Status(Code::IO_ERROR, path + ": " + what, EINVAL).At(path); };
  if (!S_ISREG(found.st_mode)) {
    return Status(Code::IO_ERROR, path + ": expected a regular file, found " + NameOfKind(found.st_mode),
                  S_ISDIR(found.st_mode) ? EISDIR : EINVAL)
        .At(path);
  }
  const auto size = static_cast<size_t>(found.st_size);
  if (static_cast<double>(size) > max_bytes)
    return wrong(Format("expected at most %.0f bytes, found %zu", max_bytes, size));
  const size_t room = size + 1;  // to notice a file that grows
  out->bytes.reset(new uint8_t[room]);
  while (out->size < room) {
    ssize_t got = pread(fd.get(), out->bytes.get() + out->size, std::min(room - out->size, kMaxRead),
                        static_cast<off_t>(out->size));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return IoError(path, "read " + path, errno);
    if (got == 0) break;
    out->size += static_cast<size_t>(got);
  }
  if (out->size == size) return Status::Ok();
  return wrong(
      Format("expected %zu bytes, found %s", size, out->size < size ? std::to_string(out->size).c_str() : "more"));
}

// readFile(path, maxBytes): Promise<ArrayBuffer> of a regular file of at most so many bytes
Napi::Value ReadFile(const Napi::CallbackInfo& info) {
  auto content = std::make_shared<Content>();
  std::string path = info[0].As<Napi::String>();
  const double max_bytes = info[1].As<Napi::Number>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return ReadWhole(path, max_bytes, content.get()); },
      [content](Napi::Env env) {
        return ArrayBufferOverOrCopy(env, content->bytes.get(), content->size, FreedElsewhere(content));
      });
}

// copyRanges(source, identity, ranges: Float64Array [offset, length, position, …], fd, path, writeBack, progress:
// External): Promise<void>, copies ranges of a file to `position` of an open one, whose path is for messages, by a
// descriptor of its own, as saveAllocation. See CopyRanges.
Napi::Value CopyRangesJs(const Napi::CallbackInfo& info) {
  std::string source = info[0].As<Napi::String>(), path = info[4].As<Napi::String>();
  const FileIdentity identity = IdentityFromJs(info[1].As<Napi::Object>());
  auto array = info[2].As<Napi::Float64Array>();
  std::vector<CopyRange> ranges;
  for (size_t i = 0; i + 2 < array.ElementLength(); i += 3) {
    ranges.push_back(
        {static_cast<uint64_t>(array[i]), static_cast<uint64_t>(array[i + 1]), static_cast<uint64_t>(array[i + 2])});
  }
  const int fd = info[3].As<Napi::Number>().Int32Value();
  const bool write_back = info[5].ToBoolean();
  auto progress = FromExternal<std::atomic<uint64_t>>(info[6]);
  auto file = std::make_shared<UniqueFd>(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!file->valid()) Throw(info.Env(), IoError(path, "cannot write " + path, errno));
  return AsyncWork::RunOnFile(
      info.Env(),
      [=] {
        return CopyRanges(source, identity, ranges, {file->get(), 0, path, write_back}, progress.get());
      },
      nullptr);
}

// deadThreeFs(path, errno: its name): string, the 3FS mount whose lost daemon explains that a system call on the path
// failed so; "" for none. Does not wait for a mount.
Napi::Value DeadThreeFsJs(const Napi::CallbackInfo& info) {
  const std::string path = info[0].As<Napi::String>(), name = info[1].As<Napi::String>();
  for (int error : {ENOTCONN, ECONNABORTED, ESTALE}) {
    if (name == ErrnoName(error)) return Napi::String::New(info.Env(), DeadThreeFs(path, error));
  }
  // Links could lead to a mount that hangs, where dead ones answer at once.
  const bool absent = name == "ENOENT" || name == "ENOTDIR";
  return Napi::String::New(info.Env(), absent ? LostThreeFs(path, CurrentMounts()) : "");
}

// isOnThreeFs(path): Promise<boolean>
Napi::Value IsOnThreeFsJs(const Napi::CallbackInfo& info) {
  auto on_it = std::make_shared<bool>();
  std::string path = info[0].As<Napi::String>();
  return AsyncWork::RunOnFile(
      info.Env(),
      [=] {
        *on_it = IsOnThreeFs(path);
        return Status::Ok();
      },
      [on_it](Napi::Env env) { return Napi::Boolean::New(env, *on_it); });
}

}  // namespace

void ExportFiles(Napi::Env env, Napi::Object exports) {
  Export<AreColdJs>(env, exports, "areCold");
  Export<StatFile>(env, exports, "statFile");
  Export<ListFolder>(env, exports, "listFolder");
  Export<RealPath>(env, exports, "realPath");
  Export<ReadLinkJs>(env, exports, "readLink");
  Export<ReadFile>(env, exports, "readFile");
  Export<CopyRangesJs>(env, exports, "copyRanges");
  Export<DeadThreeFsJs>(env, exports, "deadThreeFs");
  Export<IsOnThreeFsJs>(env, exports, "isOnThreeFs");
}

}  // namespace fst
