// `mapping_floor threads file...`: maps the files privately, brings their pages in by so many threads, 16 MiB at a
// time, touches each page on one thread, and prints the seconds. What a loader that maps cannot be faster than.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace {

constexpr size_t kPiece = size_t{16} << 20, kPage = 4096;

struct Piece {
  char* address;
  size_t length;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 1;
  const auto began = std::chrono::steady_clock::now();
  std::vector<Piece> pieces;
  for (int i = 2; i < argc; ++i) {
    const int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) return 1;
    const auto size = static_cast<size_t>(info.st_size);
    void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) return 1;
    close(fd);
    for (size_t at = 0; at < size; at += kPiece)
      pieces.push_back({static_cast<char*>(mapped) + at, std::min(kPiece, size - at)});
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < atoi(argv[1]); ++i) {
    threads.emplace_back([&] {
      for (size_t piece = next++; piece < pieces.size(); piece = next++)
        madvise(pieces[piece].address, pieces[piece].length, MADV_POPULATE_READ);
    });
  }
  for (std::thread& thread : threads) thread.join();
  unsigned sum = 0;
  for (const Piece& piece : pieces)
    for (size_t at = 0; at < piece.length; at += kPage) sum += static_cast<unsigned char>(piece.address[at]);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  printf("%.6f %u\n", took.count(), sum & 1);
  return 0;
}
