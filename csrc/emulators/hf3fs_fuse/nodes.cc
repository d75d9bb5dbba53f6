#include "emulators/hf3fs_fuse/nodes.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace emu {

int Nodes::Open(const std::string& folder) {
  int fd = open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  nodes_[1] = {fd, 1};
  return 0;
}

int Nodes::Lookup(uint64_t parent, const char* name, struct stat* out) {
  int folder = FdOf(parent);
  if (folder < 0) return ESTALE;
  int fd = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno;
  if (fstat(fd, out) != 0) {
    int error = errno;
    close(fd);
    return error;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  Node& node = nodes_[out->st_ino];
  if (node.fd < 0) {
    node.fd = fd;
  } else {
    close(fd);
  }
  node.lookups++;
  return 0;
}

void Nodes::Forget(uint64_t number, uint64_t times) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto node = nodes_.find(number);
  if (number == 1 || node == nodes_.end()) return;
  node->second.lookups -= times < node->second.lookups ? times : node->second.lookups;
  if (node->second.lookups > 0) return;
  close(node->second.fd);
  nodes_.erase(node);
}

void Nodes::ForgetAll() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto node = nodes_.begin(); node != nodes_.end();) {
    if (node->first == 1) {
      ++node;
      continue;
    }
    close(node->second.fd);
    node = nodes_.erase(node);
  }
}

int Nodes::FdOf(uint64_t number) const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto node = nodes_.find(number);
  return node == nodes_.end() ? -1 : node->second.fd;
}

}  // namespace emu
