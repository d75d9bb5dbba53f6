#include "emulators/hf3fs/memory.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "emulators/hf3fs/mounts.h"

namespace emu {

void IovTable::Add(std::shared_ptr<IovEntry> entry) {
  Remove(entry->id);
  entries_[entry->id] = std::move(entry);
}

void IovTable::Remove(const std::string& id) {
  auto found = entries_.find(id);
  if (found == entries_.end()) return;
  found->second->undelivered.reset();  // ios that never completed may hold the entry
  entries_.erase(found);
}

std::shared_ptr<IovEntry> IovTable::Find(const std::string& id) const {
  auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : found->second;
}

void IovTable::Prune(std::unique_lock<std::mutex>& lock) {
  std::vector<std::shared_ptr<IovEntry>> wrapped;
  for (const auto& entry : entries_) {
    if (entry.second->wrapped) wrapped.push_back(entry.second);
  }
  lock.unlock();  // a daemon that is stopped does not answer
  auto is_there = [](const auto& entry) { return LinkExists(entry->link); };
  wrapped.erase(std::remove_if(wrapped.begin(), wrapped.end(), is_there), wrapped.end());
  lock.lock();
  for (const auto& gone : wrapped) {
    if (gone->in_flight > 0 || Find(gone->id) != gone) continue;
    ForgetLink(gone->link);
    Remove(std::string(gone->id));
  }
}

bool IovTable::Pin(IovEntry* entry, uint64_t memlock) {
  if (entry->pinned) return true;
  uint64_t total = entry->size;
  for (const auto& other : entries_) total += other.second->pinned ? other.second->size : 0;
  if (memlock != 0 && total > memlock) return false;
  return entry->pinned = true;
}

std::string IovTable::RemoveLinks() {
  std::string text;
  for (const auto& entry : entries_) {
    if (!RemoveLink(entry.second->link)) continue;
    text += " iov " + IdText(entry.first) + " of " + std::to_string(entry.second->size) + " bytes";
    if (entry.second->wrapped) text += " (its link " + entry.second->link + ")";
  }
  return text;
}

std::string RandomId() {
  std::string id(16, '\0');
  if (getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) abort();
  id[6] = static_cast<char>((id[6] & 0x0f) | 0x40);
  id[8] = static_cast<char>((id[8] & 0x3f) | 0x80);
  return id;
}

std::string IdText(const std::string& id) {
  std::string text;
  for (size_t i = 0; i < id.size(); i++) {
    char hex[3];
    snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(id[i]));
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += hex;
  }
  return text;
}

int MakeShm(size_t size, std::string* name, uint8_t** base) {
  *name = "/hf3fs-iov-" + IdText(RandomId());
  int fd = shm_open(name->c_str(), O_RDWR | O_CREAT | O_EXCL, 0666);
  if (fd < 0) return errno;
  RememberShm(*name);
  int error = 0;
  void* memory = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) {
    error = errno;
  } else if ((memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
    error = errno;
  }
  close(fd);
  if (error != 0) RemoveShm(*name);
  *base = static_cast<uint8_t*>(memory);
  return error;
}

bool HasRoom(uint8_t* base, size_t size) {
  for (size_t at = 0; at < size; at += 4096) {
    if (madvise(base + at, 4096, 23 /* MADV_POPULATE_WRITE */) != 0 && errno != EINVAL) return false;
  }
  return true;
}

std::string WhyNotShared(const IovEntry& entry) {
  const std::string& file = entry.target;
  if (file.empty()) return "its link " + entry.link + " is absent";
  if (file.compare(0, 9, "/dev/shm/") != 0) return "its link leads to " + file + ", which is not in /dev/shm";
  uintptr_t next = reinterpret_cast<uintptr_t>(entry.base), end = next + entry.size;
  uint64_t expected_offset = 0;
  std::ifstream maps("/proc/self/maps");
  if (!maps) return "";  // no descriptor is left to look
  for (std::string line; next < end && std::getline(maps, line);) {
    uint64_t from, to, offset, inode = 0;
    char flags[8];
    int path = 0;
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %*s %" SCNu64 " %n", &from, &to, flags, &offset,
               &inode, &path) < 5)
      continue;
    if (to <= next || from > next) continue;
    std::string mapped = path > 0 ? line.substr(static_cast<size_t>(path)) : "";
    // By inode where the file has its name still. One that was made without (O_TMPFILE) is mapped without, too.
    if (entry.inode == 0 && mapped.compare(0, 10, "/dev/shm/#") == 0) mapped = file;
    if (entry.inode != 0 ? inode != entry.inode : mapped != file && mapped != file + " (deleted)")
      return "its memory is a mapping of \"" + mapped + "\", not of " + file;
    if (flags[3] != 's') return "its memory is mapped privately: the daemon's writes would not be seen";
    if (offset + (next - from) != expected_offset) return "its memory is not mapped from the start of " + file;
    expected_offset += to - next;
    next = to;
  }
  return next < end ? "its memory is not mapped to the end" : "";
}

bool IsCudaRegistered(const void* base, size_t size) {
  const char* path = getenv("FASTSAFETENSORS_CUDA_LIB");
  if (path == nullptr || *path == '\0') return false;
  void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return false;
  auto query = reinterpret_cast<int (*)(const void*, size_t)>(dlsym(library, "fst_emu_cuda_is_registered"));
  bool registered = query != nullptr && query(base, size) != 0;
  dlclose(library);
  return registered;
}

}  // namespace emu
