// Files registered with the 3FS client library: opened, compared, registered; deregistered, closed. Each takes two
// descriptors, so their number is bounded by the process's limit.
#pragma once
#include <memory>
#include <string>

#include "base/task_pool.h"
#include "reader/reader.h"
#include "reader/usrbio/usrbio_api.h"

namespace fst::usrbio {

class Files {
 public:
  // `mount` is for messages and for telling a dead daemon from a file elsewhere.
  Files(const UsrbioApi& api, std::string mount);
  // Waits until every file is closed: no reference may be held any more.
  ~Files();

  // Any thread, several at a time; waits for another file to be closed where the limit of open files asks for it.
  // IO_ERROR, FILE_CHANGED, NOT_3FS, THREEFS_DISCONNECTED, THREEFS_ERROR.
  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out);

  // The descriptor of a file made by Open, as prep_io takes it.
  static int FdOf(const ReaderFile& file);

  // Compares a file with what it was when it was opened, asking the daemon and not the kernel's cache. Blocks.
  static Status CheckUnchanged(const ReaderFile& file);
  // True when [begin, end) reads as zeros: a hole, or what the daemon gives as one to an ordinary read. Blocks.
  static bool IsZeros(const ReaderFile& file, uint64_t begin, uint64_t end);

 private:
  struct State;
  class OpenFile;
  std::shared_ptr<State> state_;
};

// Files that may be open at a time when the soft limit is `limit` and `used` descriptors are open already.
int OpenFilesFor(uint64_t limit, uint64_t used);

}  // namespace fst::usrbio
