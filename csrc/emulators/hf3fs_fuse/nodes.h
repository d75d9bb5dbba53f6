// The files and folders of the backing folder that the kernel knows, by their inode numbers.
#pragma once
#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace emu {

// An O_PATH descriptor of each, for as long as the kernel remembers it. Any thread.
class Nodes {
 public:
  // The root's number is 1. 0 or an errno.
  int Open(const std::string& folder);

  // Finds `name` in a folder and counts that the kernel knows it. 0 or an errno.
  int Lookup(uint64_t parent, const char* name, struct stat* out);
  void Forget(uint64_t node, uint64_t times);

  // Forgets all but the root, of which the kernel does not hear: as a daemon that was started again.
  void ForgetAll();

  // -1 for a number that is not known, as those of before a restart.
  int FdOf(uint64_t node) const;

 private:
  struct Node {
    int fd = -1;
    uint64_t lookups = 0;
  };
  mutable std::mutex mutex_;
  std::map<uint64_t, Node> nodes_;
};

}  // namespace emu
