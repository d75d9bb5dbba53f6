#include "reader/usrbio/usrbio_sweep.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "reader/usrbio/usrbio_iov.h"

namespace fst::usrbio {
namespace {

constexpr char kPrefix[] = "hf3fs-iov-";
// A file is empty between its making and its first opening, which nothing tells from an abandoned one.
constexpr time_t kEmptySeconds = 60;

bool IsEmptyAndNew(const struct stat& file) {
  return file.st_size == 0 && time(nullptr) - file.st_mtime < kEmptySeconds;
}

// A read lease is granted when nobody has the file open or mapped for writing, wherever that process runs.
bool NobodyWrites(int fd) {
  // Who opens the file now waits, and this process is told by a signal: by one that is ignored, not by SIGIO.
  return fcntl(fd, F_SETSIG, SIGURG) == 0 && fcntl(fd, F_SETLEASE, F_RDLCK) == 0;
}

}  // namespace

size_t SweepShm() {
  DIR* dir = opendir(kShm);
  if (dir == nullptr) return 0;
  size_t left = 0;
  while (dirent* entry = readdir(dir)) {
    if (strncmp(entry->d_name, kPrefix, sizeof kPrefix - 1) != 0) continue;
    int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) continue;
    struct stat file;
    if (fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && file.st_uid == geteuid()) {
      bool abandoned = !IsEmptyAndNew(file) && NobodyWrites(fd);
      if (!abandoned || unlinkat(dirfd(dir), entry->d_name, 0) != 0) ++left;
    }
    close(fd);
  }
  closedir(dir);
  return left;
}

}  // namespace fst::usrbio
