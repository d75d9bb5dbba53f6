// The iovs that this process announced: made by iovcreate or wrapped. The engine's lock guards the table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "emulators/hf3fs/undelivered.h"

namespace emu {

struct IovEntry {
  std::string id, mount, link, shm_name;  // shm_name only for what the library made
  std::string target;                     // of a wrapped one's link, when it was wrapped; "": there was none
  uint8_t* base = nullptr;
  size_t size = 0, block_size = 0;
  bool wrapped = false;
  uint64_t inode = 0;     // of the file that a wrapped one's link named when it was wrapped; 0: it named none
  bool verified = false;  // a wrapped one's link and memory were compared
  bool pinned = false;    // registered for I/O: counts towards the memlock limit
  int in_flight = 0;
  std::unique_ptr<Undelivered> undelivered;  // made when a read first falls short; goes before the memory
};

class IovTable {
 public:
  void Add(std::shared_ptr<IovEntry> entry);
  void Remove(const std::string& id);
  std::shared_ptr<IovEntry> Find(const std::string& id) const;

  // Drops wrapped iovs whose owner removed the link: nothing in the API says that they are gone.
  void Prune(std::unique_lock<std::mutex>& lock);

  // Whether the daemon can pin `entry`; each is asked once, with the limit of that moment (0: none).
  bool Pin(IovEntry* entry, uint64_t memlock);

  // At exit: removes the links of iovs, as their owner did not. What was left: " iov <id> of n bytes" for each whose
  // link could be removed.
  std::string RemoveLinks();
  size_t size() const { return entries_.size(); }

 private:
  std::map<std::string, std::shared_ptr<IovEntry>> entries_;
};

std::string RandomId();                     // 16 bytes, a version 4 uuid
std::string IdText(const std::string& id);  // "xxxxxxxx-xxxx-…"

// A new /dev/shm/hf3fs-iov-<uuid> of `size` bytes, mapped; ftruncated only, as the library does. 0 or an errno; ENOSPC
// when /dev/shm has no room (the real library does not notice: the first touch is a SIGBUS).
int MakeShm(size_t size, std::string* name, uint8_t** base);
// Whether /dev/shm has pages for all of this mapping: what touches them where it has none is ended by SIGBUS.
bool HasRoom(uint8_t* base, size_t size);

// Why a wrapped iov is none that a daemon could use ("" when it is): its link must name a file of /dev/shm that is
// mapped, shared, at base. The file's name may be gone already.
std::string WhyNotShared(const IovEntry& entry);

// True when the CUDA emulator is loaded and says that this memory is registered with it.
bool IsCudaRegistered(const void* base, size_t size);

}  // namespace emu
