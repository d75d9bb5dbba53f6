// A library that takes a while to load, as the 3FS client does, and has a static object: what is called after exit()
// has destroyed that aborts.
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace {

std::atomic<bool> destroyed{false};

struct Table {
  Table() { usleep(300'000); }
  ~Table() {
    destroyed = true;
    usleep(50'000);  // a call meanwhile shows
  }
} table;

}  // namespace

extern "C" __attribute__((visibility("default"))) int work() {
  if (destroyed) abort();
  return 0;
}
