#include "emulators/hf3fs_fuse/links.h"

#include <fcntl.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace emu {
namespace {

constexpr char kShm[] = "/dev/shm/";
// Of a ring: four counters, a semaphore, 96 bytes for each entry and one more, and a page.
constexpr size_t kRingFixed = 16 + 32 + 4096, kRingEntry = 96;

[[noreturn]] void Crash(const std::string& why) {
  fprintf(stderr, "hf3fs_fuse: %s\n", why.c_str());
  abort();
}

bool IsUuid(const std::string& text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); i++) {
    bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : isxdigit(static_cast<unsigned char>(text[i])) == 0) return false;
  }
  return true;
}

// "<uuid>[.b<block>][.r|w<depth>][.p[h|n|l]][.t<ms>][.f<binary flags>]"
struct Name {
  size_t block = 0;
  bool is_ring = false;
  int depth = 0;

  int Parse(const std::string& text) {
    std::istringstream parts(text);
    std::string part;
    std::getline(parts, part, '.');
    if (!IsUuid(part)) return EIO;
    bool of_ring = false;
    while (std::getline(parts, part, '.')) {
      const long long number = part.empty() ? 0 : atoll(part.c_str() + 1);
      switch (part.empty() ? '\0' : part[0]) {
        case 'b':
          if (number <= 0) return EINVAL;
          block = static_cast<size_t>(number);
          break;
        case 'r':
        case 'w':
          is_ring = true;
          depth = static_cast<int>(number);
          break;
        case 't':
          if (number < 0) return EINVAL;
          of_ring = true;
          break;
        case 'f':
          if (part.find_first_not_of("01", 1) != std::string::npos) return EINVAL;
          of_ring = true;
          break;
        case 'p':
          if (part.size() > 1 && std::string("hnl").find(part[1]) == std::string::npos) return EINVAL;
          of_ring = true;
          break;
        default:
          break;
      }
    }
    return of_ring && !is_ring ? EINVAL : 0;
  }
};

int Map(const Link& link, std::shared_ptr<const Mapping>* out) {
  Name name;
  int error = name.Parse(link.name);
  if (error != 0) return error;
  struct stat file;
  if (link.target.compare(0, sizeof kShm - 1, kShm) != 0 || stat(link.target.c_str(), &file) != 0 ||
      !S_ISREG(file.st_mode)) {
    return EINVAL;
  }
  const size_t size = static_cast<size_t>(file.st_size);
  if (name.block > size) return EINVAL;
  if (size == 0) Crash("a link to the empty file " + link.target + ": 3FS's daemon divides by its size");
  if (name.is_ring && size < kRingFixed + 2 * kRingEntry) {
    Crash("a ring of " + std::to_string(size) + " bytes: 3FS's daemon takes the difference to a page for its entries");
  }
  const size_t entries = name.is_ring ? (size - kRingFixed) / kRingEntry - 1 : 0;
  if (name.is_ring && name.depth > static_cast<int>(entries)) return EINVAL;
  int fd = open(link.target.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return EACCES;
  void* base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (base == MAP_FAILED) return EACCES;
  auto mapping = std::make_shared<Mapping>();
  mapping->base = base;
  mapping->size = size;
  // The daemon touches a ring first, where its semaphore is: in a full /dev/shm that is SIGBUS.
  if (name.is_ring) (void)sem_init(reinterpret_cast<sem_t*>(static_cast<char*>(base) + 16 + 96 * entries + 96), 1, 0);
  *out = std::move(mapping);
  return 0;
}

}  // namespace

Mapping::~Mapping() { munmap(base, size); }

int Links::Add(const Link& link, size_t* slot) {
  std::shared_ptr<const Mapping> memory;
  int error = Map(link, &memory);
  if (error != 0) return error;
  std::lock_guard<std::mutex> lock(mutex_);
  *slot = 0;
  for (const auto& taken : slots_) {
    if (taken.first != *slot) break;
    ++*slot;
  }
  if (*slot >= most_) return EMFILE;
  Link& made = slots_[*slot] = link;
  made.memory = std::move(memory);
  slot_of_[link.name] = *slot;
  return 0;
}

int Links::At(size_t slot, uid_t uid, Link* out) const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto link = slots_.find(slot);
  if (link == slots_.end()) return ENOENT;
  if (link->second.uid != uid) return EPERM;
  *out = link->second;
  return 0;
}

int Links::Find(const std::string& name, uid_t uid, size_t* slot) const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = slot_of_.find(name);
  if (found == slot_of_.end()) return ENOENT;
  *slot = found->second;
  return slots_.at(*slot).uid == uid ? 0 : EPERM;
}

int Links::Remove(const std::string& name, uid_t uid) {
  size_t slot;
  int error = Find(name, uid, &slot);
  if (error != 0) return error;
  std::lock_guard<std::mutex> lock(mutex_);
  slots_.erase(slot);
  slot_of_.erase(name);
  return 0;
}

void Links::Reap(pid_t maker) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto link = slots_.begin(); link != slots_.end();) {
    auto next = std::next(link);
    if (link->second.maker == maker) {
      slot_of_.erase(link->second.name);
      slots_.erase(link);
    }
    link = next;
  }
}

void Links::Clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  slots_.clear();
  slot_of_.clear();
}

std::vector<std::pair<size_t, Link>> Links::List(bool of_all, uid_t uid) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::pair<size_t, Link>> list;
  for (const auto& link : slots_) {
    if (of_all || link.second.uid == uid) list.emplace_back(link);
  }
  return list;
}

}  // namespace emu
