// Descriptors that were opened to read a file's header and stay open to read its data: one open(2) serves both, and the
// data is that of the very file whose header was checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/fd.h"
#include "base/file_identity.h"

namespace fst {

// The descriptors that one loader caches. The process has one store for all of them, so that any reader can take a
// descriptor by its path. All methods: any thread.
class HeaderFdCache {
 public:
  HeaderFdCache() = default;
  // Close(nullptr).
  ~HeaderFdCache();
  HeaderFdCache(const HeaderFdCache&) = delete;
  HeaderFdCache& operator=(const HeaderFdCache&) = delete;

  // Caches `fd` for `path`. Closes it instead when the process caches as many as it may, and after Close.
  void Put(const std::string& path, UniqueFd fd);
  // Closes this loader's descriptors on another thread, which then calls `closed` (may be null). Calls it before it
  // returns when no descriptor is left. Never blocks.
  void Close(std::function<void()> closed);

  // Removes a descriptor cached for `path` and returns it, provided that path and descriptor still mean the file
  // `expected`; else returns an invalid one. Blocks: asks the file system.
  static UniqueFd Take(const std::string& path, const FileIdentity& expected);

  // Calls `use` with a descriptor cached for `path`, which stays cached, provided that the path still means the file
  // `expected`. False when `use` says so of all of them, when there is none, and when the path means another file: then
  // one is closed on another thread. Other calls wait meanwhile: for uses that neither block nor take long, of files
  // whose file system answers at once.
  static bool Use(const std::string& path, const FileIdentity& expected, const std::function<bool(int fd)>& use);

  // How many descriptors EvictAll has closed since the process began.
  static uint64_t evictions();
  // On EMFILE or ENFILE: closes all descriptors that the process caches. True as soon as any thread has closed one
  // since evictions() was `seen`: retry. False when there is none to close, or no close(2) returns within a second.
  static bool EvictAll(uint64_t seen);
  // How many descriptors may be cached when `used` of `limit` are open.
  static size_t MaxCachedFds(uint64_t limit, uint64_t used);

 private:
  bool closed_ = false;
};

// open(2) for reading with `flags` added; never waits for a FIFO's writer. Out of descriptors, it evicts those that are
// cached and retries. IO_ERROR with the errno of open(2).
Status OpenForReading(const std::string& path, int flags, UniqueFd* out);

}  // namespace fst
