// `drop_cache file...`: writes the files out and drops them from the page cache, so that the next load reads the disk.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) {
      perror(argv[i]);
      return 1;
    }
    close(fd);
  }
  return 0;
}
