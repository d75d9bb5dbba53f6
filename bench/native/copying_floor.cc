// `copying_floor threads file...`: reads the files by so many threads, 4 MiB at a time, one after the other into fresh
// huge pages, touches each page on one thread, and prints the seconds. What a loader that copies cannot be faster than.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr size_t kPiece = size_t{4} << 20, kPage = 4096, kHugePage = size_t{2} << 20;

struct Piece {
  int fd;
  off_t offset;
  size_t to;  // byte of the memory
  size_t length;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 1;
  const auto began = std::chrono::steady_clock::now();
  std::vector<Piece> pieces;
  size_t total = 0;
  for (int i = 2; i < argc; ++i) {
    const int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) return 1;
    const auto size = static_cast<size_t>(info.st_size);
    for (size_t at = 0; at < size; at += kPiece)
      pieces.push_back({fd, static_cast<off_t>(at), total + at, std::min(kPiece, size - at)});
    total += (size + kPage - 1) / kPage * kPage;
  }
  const size_t length = (total + kHugePage - 1) / kHugePage * kHugePage;
  void* reserved =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return 1;
  auto* memory =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(reserved) + kHugePage - 1) / kHugePage * kHugePage);
  madvise(memory, length, MADV_HUGEPAGE);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < atoi(argv[1]); ++i) {
    threads.emplace_back([&] {
      for (size_t index = next++; index < pieces.size(); index = next++) {
        const Piece& piece = pieces[index];
        if (pread(piece.fd, memory + piece.to, piece.length, piece.offset) != static_cast<ssize_t>(piece.length))
          failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failed) return 1;
  unsigned sum = 0;
  for (size_t at = 0; at < total; at += kPage) sum += static_cast<unsigned char>(memory[at]);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  printf("%.6f %u\n", took.count(), sum & 1);
  return 0;
}
