// The exported half of the API that makes and removes things: iovs, rings, descriptors.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>

#include "emulators/hf3fs/engine.h"
#include "emulators/hf3fs/mounts.h"
#include "reader/usrbio/usrbio_api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using emu::Engine;
using emu::IovEntry;
using emu::Ring;
using emu::Unlocked;
using fst::usrbio::Ior;
using fst::usrbio::Iov;
using Lock = std::unique_lock<std::mutex>;

namespace {

constexpr size_t kMountMax = sizeof(Iov::mount_point);

std::string IdOf(const Iov* iov) { return std::string(iov->id, sizeof iov->id); }

std::string DataLink(const std::string& mount, const std::string& id, size_t block_size) {
  std::string link = mount + "/3fs-virt/iovs/" + emu::IdText(id);
  return block_size ? link + ".b" + std::to_string(block_size) : link;
}

// Makes the link, or -errno: in a dead mount it fails as FUSE would fail it.
int Announce(const std::string& mount, const std::string& shm_name, const std::string& link) {
  int error = emu::MakeIovsFolder(mount, false);
  if (error == 0) error = emu::MakeLink("/dev/shm" + shm_name, link);
  return -error;
}

// What the real library does with such sizes is a signal or an exception through the C API.
bool SizesAreWrong(Engine& engine, const char* function, size_t size, size_t block_size) {
  std::string name = function;
  if (size == 0) engine.Misuse(name + " with size 0 (the library divides by it: SIGFPE)");
  if (block_size > size)
    engine.Misuse(name + " with a block_size above the size (the library throws through the C API)");
  return size == 0 || block_size > size;
}

int MakeMemory(size_t size, std::string* name, uint8_t** base) {
  return emu::MakeShm(size, name, base) == 0 ? 0 : -EIO;
}

void FillIov(Iov* iov, uint8_t* base, void* handle, const std::string& id, const std::string& mount, size_t size,
             size_t block_size, int numa) {
  iov->base = base;
  iov->handle = handle;
  memcpy(iov->id, id.data(), sizeof iov->id);
  memcpy(iov->mount_point, mount.c_str(), mount.size() + 1);
  iov->size = size;
  iov->block_size = block_size;
  iov->numa = numa;
}

// What the library asks first, without the lock: a stopped daemon answers late.
bool AskDaemon(Engine& engine, int fd, Lock& lock) {
  const std::string root = engine.settings.root, life = engine.files.LifeOfNumber(fd);
  Unlocked asking(lock);
  return emu::Is3fs(fd, root, life);
}

}  // namespace

EXPORT bool hf3fs_is_hf3fs(int fd) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("is_hf3fs", &result)) return result != 0;
  std::string path = fd < 0 ? "" : emu::PathOfFd(fd);
  return !path.empty() && !emu::MountOf(path, engine.settings.root).empty();
}

EXPORT int hf3fs_extract_mount_point(char* out, int size, const char* path) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("extract_mount_point", &result)) return result;
  char real[PATH_MAX];
  if (realpath(path, real) == nullptr) {
    engine.Misuse(std::string("extract_mount_point of \"") + path + "\", which does not exist (the library aborts)");
    return -1;
  }
  std::string mount = emu::MountOf(real, engine.settings.root);
  if (mount.empty()) return -1;
  if (static_cast<int>(mount.size()) < size) memcpy(out, mount.c_str(), mount.size() + 1);
  return static_cast<int>(mount.size()) + 1;
}

EXPORT int hf3fs_iovcreate(Iov* iov, const char* mount, size_t size, size_t block_size, int numa) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("iovcreate", &result)) return result;
  if (iov == nullptr || strlen(mount) >= kMountMax || SizesAreWrong(engine, "iovcreate", size, block_size))
    return -EINVAL;
  engine.CheckMaker("iovcreate", mount);
  auto entry = std::make_shared<IovEntry>();
  result = MakeMemory(size, &entry->shm_name, &entry->base);
  if (result != 0) return result;
  entry->id = emu::RandomId();
  entry->mount = mount;
  entry->link = DataLink(mount, entry->id, block_size);
  entry->size = size;
  entry->block_size = block_size;
  entry->verified = true;
  {
    Unlocked asking(lock);
    result = Announce(mount, entry->shm_name, entry->link);
    if (result == 0) emu::OpenLinkFolder(mount);
  }
  if (result != 0) {
    munmap(entry->base, size);
    emu::RemoveShm(entry->shm_name);
    return result;
  }
  FillIov(iov, entry->base, entry.get(), entry->id, mount, size, block_size, numa);
  engine.iovs.Prune(lock);
  engine.iovs.Add(std::move(entry));
  return 0;
}

EXPORT int hf3fs_iovwrap(Iov* iov, void* base, const uint8_t id[16], const char* mount, size_t size, size_t block_size,
                         int numa) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("iovwrap", &result)) return result;
  if (iov == nullptr || strlen(mount) >= kMountMax) return -EINVAL;
  if (SizesAreWrong(engine, "iovwrap", size, block_size)) return -EINVAL;
  auto entry = std::make_shared<IovEntry>();
  entry->id.assign(reinterpret_cast<const char*>(id), 16);
  entry->mount = mount;
  entry->link = DataLink(mount, entry->id, block_size);
  entry->base = static_cast<uint8_t*>(base);
  entry->size = size;
  entry->block_size = block_size;
  entry->wrapped = true;
  {
    Unlocked asking(lock);
    entry->target = emu::ReadLink(entry->link);
    struct stat file;
    if (stat(entry->link.c_str(), &file) == 0) entry->inode = file.st_ino;
  }
  emu::RememberLink(entry->link);
  engine.CheckMaker("iovwrap", mount);
  FillIov(iov, entry->base, nullptr, entry->id, mount, size, block_size, numa);
  engine.iovs.Prune(lock);
  engine.iovs.Add(std::move(entry));
  return 0;
}

EXPORT void hf3fs_iovunlink(Iov* iov) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  auto entry = engine.iovs.Find(IdOf(iov));
  if (iov->handle == nullptr || entry == nullptr) {
    engine.Misuse("iovunlink of an iov that iovcreate did not make (the library reads through a null pointer)");
    return;
  }
  emu::RemoveShm(entry->shm_name);
}

EXPORT void hf3fs_iovdestroy(Iov* iov) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  if (iov == nullptr) return;
  auto entry = engine.iovs.Find(IdOf(iov));
  if (iov->handle == nullptr || entry == nullptr) {
    engine.Misuse(
        "iovdestroy of an iov that was wrapped or destroyed before (the library refuses it; remove link and memory "
        "yourself)");
    return;
  }
  int busy = 0;
  const auto rings = engine.rings;
  for (const auto& ring : rings) {
    if (!engine.HasRing(ring.get(), lock)) continue;
    for (const auto& io : ring->slots) busy += io != nullptr && io->iov == entry && !io->stalled;
  }
  if (busy > 0) engine.Misuse("iovdestroy with " + std::to_string(busy) + " ios in flight on the iov");
  if (emu::IsCudaRegistered(entry->base, entry->size)) {
    engine.Misuse("iovdestroy unmaps memory that is still registered with CUDA (cuMemHostUnregister comes first)");
  }
  {
    Unlocked asking(lock);
    emu::RemoveLink(entry->link);
  }
  emu::RemoveShm(entry->shm_name);
  engine.iovs.Remove(entry->id);
  munmap(entry->base, entry->size);
  iov->handle = nullptr;
}

// As IoRing::bytesRequired: four counters, the wake-up semaphore, and per entry (one more than asked) arguments, result
// and order.
EXPORT size_t hf3fs_ior_size(int entries) { return 16 + 32 + 96 * (static_cast<size_t>(entries) + 1) + 4096; }

EXPORT int hf3fs_iorcreate4(Ior* ior, const char* mount, int entries, bool for_read, int io_depth, int timeout,
                            int numa, uint64_t flags) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("iorcreate4", &result)) return result;
  if (ior == nullptr || mount == nullptr || *mount == '\0' || timeout < 0 || strlen(mount) >= kMountMax) return -EINVAL;
  if (entries <= 0) {
    engine.Misuse("iorcreate with " + std::to_string(entries) + " entries");
    return -EINVAL;
  }
  if (io_depth < 0 && timeout > 0)
    engine.Misuse("iorcreate with io_depth < 0 and a timeout: a partial batch would never run; use timeout 0");
  if (flags >= 2)
    engine.Misuse("iorcreate with flags >= 2: the library leaks the ring's link at iordestroy; use flags 0");
  if (io_depth > entries) return -EINVAL;
  engine.CheckMaker("iorcreate", mount);
  auto ring = std::make_shared<Ring>();
  ring->mount = mount;
  ring->entries = entries;
  ring->depth = io_depth;
  ring->flags = flags;
  ring->size = hf3fs_ior_size(entries);
  std::string shm_name, id = emu::RandomId();
  result = MakeMemory(ring->size, &shm_name, &ring->base);
  if (result != 0) return result;
  ring->link = ring->mount + "/3fs-virt/iovs/" + emu::IdText(id) + (for_read ? ".r" : ".w") + std::to_string(io_depth) +
               ".t" + std::to_string(timeout);
  {
    Unlocked asking(lock);
    result = Announce(mount, shm_name, ring->link);
    // Nobody reserves it: the daemon touches it first.
    if (result == 0 && !emu::HasRoom(ring->base, ring->size))
      emu::Die("a ring in a full /dev/shm: its first touch kills the daemon, or the process, with SIGBUS");
    emu::RemoveShm(shm_name);  // a ring's name goes as soon as the daemon has it
    if (result == 0) emu::OpenLinkFolder(mount);
    if (result == 0) emu::OpenSemaphore(mount);
  }
  if (result != 0) {
    munmap(ring->base, ring->size);
    return result;
  }
  FillIov(&ior->iov, ring->base, ring.get(), id, mount, ring->size, 0, numa);
  if (engine.ShallFail("iorwrap", &result)) {  // as the library: it looks for the link by an iov's name, and leaves it
    munmap(ring->base, ring->size);
    ior->iov.handle = nullptr;
    return result;
  }
  ring->slots.resize(static_cast<size_t>(entries));
  ior->handle = ring.get();
  memcpy(ior->mount_point, mount, ring->mount.size() + 1);
  ior->for_read = for_read;
  ior->io_depth = io_depth;
  ior->priority = 0;
  ior->timeout = timeout;
  ior->flags = flags;
  engine.AddRing(std::move(ring));
  return 0;
}

EXPORT void hf3fs_iordestroy(Ior* ior) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  if (ior == nullptr || ior->handle == nullptr) return;
  std::shared_ptr<Ring> ring;
  for (const auto& any : engine.rings) {
    if (any.get() == ior->handle) ring = any;
  }
  if (ring == nullptr) return engine.Misuse("iordestroy of a ring that was destroyed before (a copy of its struct)");
  (void)engine.HasRing(ring.get(), lock);
  int busy = Engine::InFlight(*ring);
  if (busy > 0) engine.Misuse("iordestroy with " + std::to_string(busy) + " ios in flight or not taken");
  engine.RemoveRing(ring, lock);
  {
    Unlocked asking(lock);
    emu::RemoveLink(ring->link);
  }
  munmap(ring->base, ring->size);
  ior->handle = ior->iov.handle = nullptr;
}

EXPORT int hf3fs_reg_fd(int fd, uint64_t flags) {
  (void)flags;
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("reg_fd", &result)) return engine.files.Refuse(fd, result);
  int dup_fd = 0;
  std::string misuse;
  result = engine.files.Register(fd, AskDaemon(engine, fd, lock), engine.settings.root, &dup_fd, &misuse);
  if (!misuse.empty()) engine.Misuse(misuse);
  return result == 0 ? -dup_fd : result;
}

EXPORT void hf3fs_dereg_fd(int fd) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  std::string misuse;
  engine.files.Deregister(fd, AskDaemon(engine, fd, lock), &misuse);
  if (!misuse.empty()) engine.Misuse(misuse);
}
