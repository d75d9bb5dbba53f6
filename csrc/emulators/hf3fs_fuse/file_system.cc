#include "emulators/hf3fs_fuse/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <vector>

namespace emu {
namespace {

constexpr uint64_t kVirtual = static_cast<uint64_t>(-2), kIovs = 0xffffffff80000000, kFirstLink = kIovs - 65535;
constexpr const char* kSemaphoreNames[] = {"submit-ios", "submit-ios.ph", "submit-ios.pl"};
constexpr char kVirtualName[] = "3fs-virt", kIovsName[] = "iovs";

FileSystem& Fs(fuse_req_t req) { return *static_cast<FileSystem*>(fuse_req_userdata(req)); }
uid_t Uid(fuse_req_t req) { return fuse_req_ctx(req)->uid; }

pid_t Client(fuse_req_t req) { return Fs(req).sees_no_pids ? 0 : fuse_req_ctx(req)->pid; }

void Reply(fuse_req_t req, int error) { (void)fuse_reply_err(req, error); }

bool IsVirtualFolder(uint64_t node) { return node == kVirtual || node == kIovs; }
// Which of the daemon's semaphores a node stands for; -1 for others.
int SemaphoreOf(uint64_t node) { return node < kIovs && kIovs - node <= 3 ? static_cast<int>(kIovs - node) - 1 : -1; }
bool IsLink(uint64_t node) { return node <= kFirstLink && node > kFirstLink - INT_MAX; }

struct stat FolderStat(uint64_t node) {
  struct stat st = {};
  st.st_ino = node;
  st.st_mode = S_IFDIR | (node == kIovs ? 0777 : 0555);
  st.st_nlink = 2;
  return st;
}

struct stat LinkStat(size_t slot, const Link& link) {
  struct stat st = {};
  st.st_ino = kFirstLink - slot;
  st.st_mode = S_IFLNK | 0400;
  st.st_nlink = 1;
  st.st_uid = link.uid;
  st.st_gid = link.gid;
  st.st_size = static_cast<off_t>(link.target.size());
  return st;
}

struct stat SemaphoreStat(const FileSystem& fs, int number) {
  struct stat st = {};
  st.st_ino = kIovs - static_cast<uint64_t>(number) - 1;
  st.st_mode = S_IFLNK | 0666;
  st.st_nlink = 1;
  st.st_size = static_cast<off_t>(fs.semaphores[static_cast<size_t>(number)].size());
  return st;
}

void ReplyEntry(fuse_req_t req, const struct stat& st, double seconds) {
  fuse_entry_param entry = {};
  entry.ino = st.st_ino;
  entry.attr = st;
  entry.attr_timeout = entry.entry_timeout = seconds;
  (void)fuse_reply_entry(req, &entry);
}

struct stat WithChunk(const FileSystem& fs, struct stat st) {
  st.st_blksize = fs.chunk_bytes;
  return st;
}

void Init(void*, fuse_conn_info* connection) { connection->max_read = kMaxRead; }

void Lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  FileSystem& fs = Fs(req);
  if (parent == FUSE_ROOT_ID && strcmp(name, kVirtualName) == 0)
    return ReplyEntry(req, FolderStat(kVirtual), kEntrySeconds);
  if (parent == kVirtual) {
    if (strcmp(name, kIovsName) != 0) return Reply(req, ENOENT);
    return ReplyEntry(req, FolderStat(kIovs), kEntrySeconds);
  }
  if (parent == kIovs) {
    for (int i = 0; i < static_cast<int>(fs.semaphores.size()); i++) {
      if (strcmp(name, kSemaphoreNames[i]) == 0) return ReplyEntry(req, SemaphoreStat(fs, i), kEntrySeconds);
    }
    size_t slot;
    Link link;
    int error = fs.links.Find(name, Uid(req), &slot);
    if (error == 0) error = fs.links.At(slot, Uid(req), &link);
    return error == 0 ? ReplyEntry(req, LinkStat(slot, link), kEntrySeconds) : Reply(req, error);
  }
  struct stat st;
  int error = fs.nodes.Lookup(parent, name, &st);
  if (error != 0) return Reply(req, error);
  ReplyEntry(req, WithChunk(fs, st), kEntrySeconds);
}

void Forget(fuse_req_t req, fuse_ino_t node, uint64_t times) {
  Fs(req).nodes.Forget(node, times);
  fuse_reply_none(req);
}

void ForgetMulti(fuse_req_t req, size_t count, fuse_forget_data* forgets) {
  for (size_t i = 0; i < count; i++) Fs(req).nodes.Forget(forgets[i].ino, forgets[i].nlookup);
  fuse_reply_none(req);
}

void GetAttr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  FileSystem& fs = Fs(req);
  struct stat st;
  if (IsVirtualFolder(node)) {
    st = FolderStat(node);
  } else if (SemaphoreOf(node) >= 0) {
    st = SemaphoreStat(fs, SemaphoreOf(node));
  } else if (IsLink(node)) {
    Link link;
    int error = fs.links.At(kFirstLink - node, Uid(req), &link);
    if (error != 0) return Reply(req, error);
    st = LinkStat(kFirstLink - node, link);
  } else {
    int fd = fs.nodes.FdOf(node);
    if (fd < 0) return Reply(req, ESTALE);
    if (fstat(fd, &st) != 0) return Reply(req, errno);
    st = WithChunk(fs, st);
    if (node == FUSE_ROOT_ID) st.st_ino = FUSE_ROOT_ID;
  }
  (void)fuse_reply_attr(req, &st, kEntrySeconds);
}

void ReadLink(fuse_req_t req, fuse_ino_t node) {
  FileSystem& fs = Fs(req);
  if (SemaphoreOf(node) >= 0) {
    (void)fuse_reply_readlink(req, fs.semaphores[static_cast<size_t>(SemaphoreOf(node))].c_str());
    return;
  }
  if (IsLink(node)) {
    Link link;
    int error = fs.deny_readlink ? EPERM : fs.links.At(kFirstLink - node, Uid(req), &link);
    if (error != 0) return Reply(req, error);
    (void)fuse_reply_readlink(req, link.target.c_str());
    return;
  }
  int fd = fs.nodes.FdOf(node);
  char target[PATH_MAX + 1];
  ssize_t length = readlinkat(fd, "", target, PATH_MAX);
  if (length < 0) return Reply(req, errno);
  target[length] = '\0';
  (void)fuse_reply_readlink(req, target);
}

// Counts links until the one whose answer is held back, and waits with that and those after it.
void Hold(FileSystem* fs) {
  int hold = fs->hold;
  while (hold > 1 && !fs->hold.compare_exchange_weak(hold, hold - 1)) {
  }
  if (hold != 1) return;
  while (fs->hold != 0) usleep(1000);
}

void SymLink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
  if (parent != kIovs) return Reply(req, EROFS);
  FileSystem& fs = Fs(req);
  Hold(&fs);
  Link link = {name, target, Client(req), Uid(req), fuse_req_ctx(req)->gid, nullptr};
  size_t slot;
  int error = fs.links.Add(link, &slot);
  if (error != 0) return Reply(req, error);
  ReplyEntry(req, LinkStat(slot, link), kLinkSeconds);
}

void Unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
  FileSystem& fs = Fs(req);
  if (parent != kIovs || fs.readonly) return Reply(req, EROFS);
  Reply(req, fs.links.Remove(name, Uid(req)));
}

// An open folder: who opened it, and its entries as they were at the first read.
struct OpenFolder {
  pid_t opener = 0;
  std::vector<std::pair<std::string, struct stat>> entries;
};

OpenFolder* FolderOf(const fuse_file_info* info) {
  return reinterpret_cast<OpenFolder*>(info->fh);  // NOLINT(performance-no-int-to-ptr)
}

void OpenDir(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  auto folder = std::make_unique<OpenFolder>();
  folder->opener = Client(req);
  info->fh = reinterpret_cast<uint64_t>(folder.get());
  if (fuse_reply_open(req, info) == 0) (void)folder.release();
}

int List(const FileSystem& fs, fuse_ino_t node, uid_t uid, OpenFolder* folder) {
  folder->entries.clear();
  if (node == kVirtual) folder->entries.emplace_back(kIovsName, FolderStat(kIovs));
  if (node == kIovs) {
    for (const auto& link : fs.links.List(/*of_all=*/false, uid))
      folder->entries.emplace_back(link.second.name, LinkStat(link.first, link.second));
  }
  if (IsVirtualFolder(node)) return 0;
  int fd = openat(fs.nodes.FdOf(node), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* dir = fd < 0 ? nullptr : fdopendir(fd);
  if (dir == nullptr) {
    int error = errno;
    if (fd >= 0) close(fd);
    return error;
  }
  while (dirent* entry = readdir(dir)) {
    struct stat st = {};
    st.st_ino = entry->d_ino;
    st.st_mode = static_cast<mode_t>(entry->d_type) << 12;
    folder->entries.emplace_back(entry->d_name, st);
  }
  closedir(dir);
  if (node == FUSE_ROOT_ID) folder->entries.emplace_back(kVirtualName, FolderStat(kVirtual));
  return 0;
}

void ReadDir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info) {
  OpenFolder* folder = FolderOf(info);
  int error = offset == 0 ? List(Fs(req), node, Uid(req), folder) : 0;
  if (error != 0) return Reply(req, error);
  std::vector<char> out(size);
  size_t used = 0;
  for (auto i = static_cast<size_t>(offset); i < folder->entries.size(); i++) {
    const auto& [name, st] = folder->entries[i];
    size_t bytes = fuse_add_direntry(req, out.data() + used, size - used, name.c_str(), &st, static_cast<off_t>(i) + 1);
    if (bytes > size - used) break;
    used += bytes;
  }
  (void)fuse_reply_buf(req, out.data(), used);
}

// A client is taken for dead when it closes the folder of links, even if it has other descriptors of it.
void ReleaseDir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  std::unique_ptr<OpenFolder> folder(FolderOf(info));
  if (node == kIovs) Fs(req).links.Reap(folder->opener);
  Reply(req, 0);
}

void Open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  if ((info->flags & O_ACCMODE) != O_RDONLY) return Reply(req, EROFS);
  int known = Fs(req).nodes.FdOf(node);
  if (known < 0) return Reply(req, ESTALE);
  int fd = open(("/proc/self/fd/" + std::to_string(known)).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return Reply(req, errno);
  info->fh = static_cast<uint64_t>(fd);
  info->direct_io = (info->flags & O_DIRECT) != 0;
  if (fuse_reply_open(req, info) != 0) close(fd);
}

// Where the last data before `end` ends: a read that ends in a hole is short.
off_t DataEnd(int fd, off_t begin, off_t end) {
  off_t data_end = begin;
  for (off_t at = begin; at < end;) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? data_end : end;
    if (data >= end) break;
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return end;
    at = data_end = std::min(hole, end);
  }
  return data_end;
}

void Read(fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* info) {
  const int fd = static_cast<int>(info->fh);
  struct stat st;
  if (fstat(fd, &st) != 0) return Reply(req, errno);
  off_t end = std::min<off_t>(offset + static_cast<off_t>(size), std::max<off_t>(st.st_size, offset));
  if (st.st_blocks * 512 < st.st_size) end = DataEnd(fd, offset, end);
  fuse_bufvec data = FUSE_BUFVEC_INIT(static_cast<size_t>(end - offset));
  data.buf[0].flags = static_cast<fuse_buf_flags>(FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK);
  data.buf[0].fd = fd;
  data.buf[0].pos = offset;
  (void)fuse_reply_data(req, &data, FUSE_BUF_SPLICE_MOVE);
}

// Each close of a descriptor asks, and waits for the answer.
void Flush(fuse_req_t req, fuse_ino_t, fuse_file_info*) { Reply(req, 0); }

void Release(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  close(static_cast<int>(info->fh));
  Reply(req, 0);
}

void StatFs(fuse_req_t req, fuse_ino_t) {
  struct statvfs st;
  if (fstatvfs(Fs(req).nodes.FdOf(FUSE_ROOT_ID), &st) != 0) return Reply(req, errno);
  (void)fuse_reply_statfs(req, &st);
}

void Ioctl(fuse_req_t req, fuse_ino_t, unsigned command, void*, fuse_file_info*, unsigned, const void*, size_t,
           size_t room) {
  const auto reply = [req, room](const void* data, size_t size) {
    if (room < size) return Reply(req, EINVAL);
    (void)fuse_reply_ioctl(req, 0, data, size);
  };
  const uint32_t magic = 0x8f3f5fff, version = 1, path_length = static_cast<uint32_t>(Fs(req).mount.size());
  const char name[32] = "hf3fs.emulated";
  switch (command) {
    case 0x80046802:
      return reply(&magic, sizeof magic);
    case 0x80046803:
      return reply(&version, sizeof version);
    case 0x80206800:
      return reply(name, sizeof name);
    case 0x80046801:
      return reply(&path_length, sizeof path_length);
    default:
      return Reply(req, ENOTTY);
  }
}

fuse_lowlevel_ops MakeOperations() {
  fuse_lowlevel_ops ops = {};
  ops.init = Init;
  ops.lookup = Lookup;
  ops.forget = Forget;
  ops.forget_multi = ForgetMulti;
  ops.getattr = GetAttr;
  ops.readlink = ReadLink;
  ops.symlink = SymLink;
  ops.unlink = Unlink;
  ops.opendir = OpenDir;
  ops.readdir = ReadDir;
  ops.releasedir = ReleaseDir;
  ops.open = Open;
  ops.read = Read;
  ops.flush = Flush;
  ops.release = Release;
  ops.statfs = StatFs;
  ops.ioctl = Ioctl;
  return ops;
}

}  // namespace

const fuse_lowlevel_ops& Operations() {
  static const fuse_lowlevel_ops ops = MakeOperations();
  return ops;
}

}  // namespace emu
