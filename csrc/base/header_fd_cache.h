// Files that were opened for their headers and stay open for their data: one opening serves both, and the data is that
// of the very file whose header was checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/fd.h"
#include "base/file_identity.h"

namespace fst {

// What one loader keeps. Any thread. All that the process keeps is in one place: whoever opens a path takes what is
// kept of it.
class OpenedFiles {
 public:
  OpenedFiles() = default;
  // As Close.
  ~OpenedFiles();
  OpenedFiles(const OpenedFiles&) = delete;
  OpenedFiles& operator=(const OpenedFiles&) = delete;

  // Closes the file at once where enough are kept, and after Close.
  void Put(const std::string& path, UniqueFd fd);
  // Closes what is left on another thread, which then calls `closed`; at once where nothing is left. Never waits.
  void Close(std::function<void()> closed);

  // A descriptor that is kept for `path`, where both the path and the descriptor still mean the file that is expected;
  // else invalid. Each is given once.
  static UniqueFd Take(const std::string& path, const FileIdentity& expected);
  // How many were given up so far.
  static uint64_t Given();
  // For who is out of descriptors: closes all that the process keeps. True as soon as one more is closed than when
  // Given() said `since`, by whomever: try again. False when there is none, or none that can be closed in a second.
  static bool GiveUp(uint64_t since);
  // How many may be kept where `limit` descriptors are allowed and `used` are open.
  static size_t Most(uint64_t limit, uint64_t used);

 private:
  bool closed_ = false;
};

// Whether an errno says that no descriptor is left.
bool OutOfDescriptors(int error);

// open(2) for reading, never waiting for a FIFO's writer, with `flags` added. Out of descriptors, it gives up those
// that are kept. errno is that of open where it fails, and left alone where it does not.
UniqueFd OpenForReading(const std::string& path, int flags = 0);

}  // namespace fst
