// The file system that the kernel asks for: files to read, and 3fs-virt/iovs with the links of clients.
#pragma once
#include <fuse_lowlevel.h>

#include <atomic>
#include <string>
#include <vector>

#include "emulators/hf3fs_fuse/links.h"
#include "emulators/hf3fs_fuse/nodes.h"

namespace emu {

struct FileSystem {
  FileSystem(std::string mount_path, size_t most_links, uint32_t chunk)
      : mount(std::move(mount_path)), links(most_links), chunk_bytes(chunk) {}

  const std::string mount;
  Nodes nodes;
  Links links;
  std::vector<std::string> semaphores;     // the files of submit-ios, submit-ios.ph and submit-ios.pl, or none
  const uint32_t chunk_bytes;              // st_blksize of files
  std::atomic<bool> readonly{false};       // a link is made, and its removal answers EROFS
  std::atomic<bool> deny_readlink{false};  // readlink answers EPERM
  std::atomic<int> hold{0};                // how many links from now answers are held back; 0: never
  std::atomic<bool> sees_no_pids{false};   // as from a sibling PID namespace: every client is pid 0
};

// What a session calls; its user data is a FileSystem.
const fuse_lowlevel_ops& Operations();

constexpr double kEntrySeconds = 30, kLinkSeconds = 5;  // for which the kernel does not ask again
constexpr uint32_t kMaxRead = 1 << 20;

}  // namespace emu
