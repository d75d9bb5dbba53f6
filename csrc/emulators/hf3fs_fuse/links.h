// The links of 3fs-virt/iovs: what clients announced, the memory behind it, and the thread that announced it.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emu {

// A file of /dev/shm as the daemon maps it.
struct Mapping {
  void* base = nullptr;
  size_t size = 0;
  ~Mapping();
};

struct Link {
  std::string name, target;
  pid_t maker = 0;  // the thread that asked for the link, not its process
  uid_t uid = 0;
  gid_t gid = 0;
  std::shared_ptr<const Mapping> memory;
};

// Slots are what the kernel knows links by; the lowest free one is given out next, so a number soon means another link.
// Any thread.
class Links {
 public:
  explicit Links(size_t most) : most_(most) {}

  // Maps the target and takes a slot. 0, or the errno that 3FS answers: EINVAL for attributes that do not fit and for
  // what is no regular file, EIO for a name that is no uuid, EACCES where it cannot be mapped, EMFILE without a slot.
  // Where the real daemon would crash (a file of no bytes, a ring too small), this one aborts with a reason.
  int Add(const Link& link, size_t* slot);

  // 0; ENOENT for an empty slot, EPERM for a link of another user.
  int At(size_t slot, uid_t uid, Link* out) const;
  int Find(const std::string& name, uid_t uid, size_t* slot) const;
  int Remove(const std::string& name, uid_t uid);

  // Takes back what a thread announced.
  void Reap(pid_t maker);
  void Clear();

  // Those of one user, or of all.
  std::vector<std::pair<size_t, Link>> List(bool of_all, uid_t uid) const;

 private:
  const size_t most_;
  mutable std::mutex mutex_;
  std::map<size_t, Link> slots_;
  std::map<std::string, size_t> slot_of_;
};

}  // namespace emu
