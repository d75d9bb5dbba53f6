// `touch_memory bytes [now]`: touches so much fresh memory, in huge pages and some in small ones, until that takes no
// longer than on a machine of its own, and frees it at its end. A virtual machine gives memory that was freed back to
// its host, two seconds later, and the next touch takes 30 times as long. Run before a measurement of less than two
// seconds, so that it is not the host's memory that is measured. `now`: does not wait until that what it freed before
// its end has gone to the host.
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kSmallPages = size_t{128} << 20;
constexpr double kOwnRate = 3e9;  // bytes/s; below it some of the memory was the host's
constexpr int kMostRounds = 10, kEnough = 2;
constexpr useconds_t kGivenBack = 2300000;  // what was freed before this one's end has gone to the host by then

struct Memory {
  Memory(size_t size, int advice) : size(size) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) exit(1);
    madvise(memory, size, advice);
    memset(memory, 1, size);
  }
  ~Memory() { munmap(memory, size); }
  const size_t size;
  void* memory;
};

// Held together: what is freed at once would only be touched again.
struct Touched {
  explicit Touched(size_t bytes) : huge(bytes, MADV_HUGEPAGE), small(kSmallPages, MADV_NOHUGEPAGE) {}
  Memory huge, small;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && (argc != 3 || strcmp(argv[2], "now") != 0)) return 2;
  const size_t bytes = strtoull(argv[1], nullptr, 10);
  for (int round = 0, fast = 0; round < kMostRounds && fast < kEnough; ++round) {
    auto begin = std::chrono::steady_clock::now();
    Touched touched(bytes);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    fast = static_cast<double>(bytes + kSmallPages) / seconds >= kOwnRate ? fast + 1 : 0;
  }
  if (argc == 3) return 0;
  Touched last(bytes);
  usleep(kGivenBack);
  return 0;
}
