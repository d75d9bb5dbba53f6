// Registered descriptors, and reads with 3FS's meaning of an end and a hole.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "emulators/hf3fs/mounts.h"

namespace emu {

struct RegisteredFile {
  ~RegisteredFile();
  int fd = -1, dup_fd = -1, flags = 0;
  dev_t device = 0;
  ino_t inode = 0;
  std::string path, mount;
  std::string life;  // of the daemon that it was registered with
  int in_flight = 0;

  // The daemon that it was registered with is there.
  bool IsKnown() const { return !life.empty() && LifeOf(mount) == life; }
  // The library closes its duplicate.
  void CloseDuplicate();

  // Up to `length` bytes, or -errno. Short at the end of the file and where the read ends in a hole, 0 past the end.
  // -EBADF where another daemon is there, which does not know the file; kNoAnswer where none is. Any thread.
  static constexpr int64_t kNoAnswer = INT64_MIN;
  int64_t Read(uint8_t* to, uint64_t offset, uint64_t length);

  // Whether a read begins in a hole, and whether data follows on a hole in it. Any thread.
  struct Holes {
    bool at_start = false, before_data = false;
  };
  Holes HolesOf(uint64_t offset, uint64_t length);

 private:
  bool OpenOwn();
  // The end of the last data before `end`, `offset` if there is none in between.
  uint64_t DataEnd(uint64_t offset, uint64_t end);
  std::shared_mutex open_;  // shared while the duplicate is used
  std::mutex mutex_;
  int own_fd_ = -1;  // opened when needed: a position or O_DIRECT of the caller's descriptor must not matter
};

// Guarded by the engine's lock.
class FileTable {
 public:
  // 0 or a positive errno, as the library answers; *dup_fd is set on 0. *misuse says what a strict library refuses.
  // `is_3fs`: the daemon's answer, see Is3fs.
  int Register(int fd, bool is_3fs, const std::string& root, int* dup_fd, std::string* misuse);
  // Notes that a registration has failed: returns the error.
  int Refuse(int fd, int error) { return refused_[fd] = error; }
  // *misuse as above. Where the daemon does not answer, nothing happens: number and duplicate stay taken.
  void Deregister(int fd, bool is_3fs, std::string* misuse);
  // The life that the daemon of a number had when it was registered; "" for another number.
  std::string LifeOfNumber(int fd) const;
  // The file of a descriptor or of its negated duplicate; null when it is not registered, *misuse then says more.
  std::shared_ptr<RegisteredFile> Find(int fd, std::string* misuse) const;

  // What is registered with a daemon that is there.
  std::string Leftovers() const;
  // Numbers that are taken.
  size_t size() const;

 private:
  std::map<int, std::shared_ptr<RegisteredFile>> files_;  // by fd and by dup_fd
  std::map<int, int> refused_;                            // fd -> the errno of its last, failed registration
};

}  // namespace emu
