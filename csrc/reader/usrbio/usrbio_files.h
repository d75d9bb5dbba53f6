// Files registered with the 3FS client library: opened, compared and registered, then deregistered and closed. Each
// takes two descriptors, so the process's limit bounds how many are open.
#pragma once
#include <memory>
#include <string>

#include "base/task_pool.h"
#include "reader/reader.h"
#include "reader/usrbio/usrbio_api.h"

namespace fst::usrbio {

// What a file is read through: a descriptor that the library has registered. Deregistered and closed, on another
// thread, with its last reference.
class Descriptor {
 public:
  virtual ~Descriptor() = default;
  const int number;  // as prep_io takes it

 protected:
  explicit Descriptor(int fd) : number(fd) {}
};

// A file of Files. All methods: any thread.
class RegisteredFile : public ReaderFile {
 public:
  static RegisteredFile& Of(ReaderFile& file) { return static_cast<RegisteredFile&>(file); }

  virtual std::shared_ptr<Descriptor> descriptor() const = 0;
  // The daemon does not know the file by `known`, which descriptor() gave: it was restarted. Opens, compares and
  // registers the file anew, unless that was done meanwhile. Blocks. The codes of Files::Open.
  virtual Status Renew(const Descriptor& known) = 0;
  // FILE_CHANGED when the file is not what it was when it was opened. Asks the daemon, not the kernel's cache, and one
  // that was restarted by Renew: blocks.
  virtual Status CheckUnchanged() = 0;

 protected:
  using ReaderFile::ReaderFile;
};

class Files {
 public:
  // `mount` is for messages, and to tell a dead daemon from a file that is elsewhere.
  Files(const UsrbioApi& api, std::string mount);
  // Waits until every file is closed: all references must have been released.
  ~Files();

  // Any thread, several at a time. Blocks, also until another file is closed where the limit of open files requires it.
  // IO_ERROR, FILE_CHANGED, NOT_3FS, THREEFS_DISCONNECTED, THREEFS_ERROR. *out is a RegisteredFile.
  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out);

  // Lets those that run end, for a second at most; new ones wait until Resume. One thread.
  void Pause();
  void Resume();

 private:
  struct State;
  class OpenDescriptor;
  class OpenFile;
  std::shared_ptr<State> state_;
};

// How many files may be open at a time when the soft limit is `limit` and `used` descriptors are open.
int OpenFilesFor(uint64_t limit, uint64_t used);

}  // namespace fst::usrbio
