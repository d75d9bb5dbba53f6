// `gpu_floor threads file...`: what the hardware can do. Prints three rates in GB/s as JSON: copies alone (page-locked
// memory to the GPU), reads alone (pread into page-locked memory), and both, each thread with two buffers of its own:
// it reads into one while the other is copied. Nothing is checked or handed out.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "base/thread.h"
#include "device/cuda_api.h"

namespace {

using namespace fst;
using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = size_t{4} << 20;
constexpr int kRounds = 3;

const cuda::CudaApi* api;
cuda::CUcontext context;

void Must(const Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.message().c_str());
  exit(1);
}
#define MUST_CU(member, ...) Must(FST_CUDA_CHECK(*api, member, __VA_ARGS__))

struct Piece {
  int fd;
  off_t at;
  size_t bytes;
  uint64_t to;
};

// GB/s of all pieces, the best of some rounds.
double Rate(const std::vector<Piece>& pieces, uint64_t total, int threads, cuda::CUdeviceptr device, bool reads,
            bool copies) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::atomic<size_t> next{0};
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> workers;
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&] {
        MUST_CU(CtxSetCurrent, context);
        void* memory[2];
        cuda::CUstream streams[2];
        for (int i : {0, 1}) {
          MUST_CU(MemHostAlloc, &memory[i], kPiece, cuda::kMemHostAllocPortable);
          MUST_CU(StreamCreate, &streams[i], cuda::kStreamNonBlocking);
        }
        ++ready;
        while (!go) std::this_thread::yield();
        int turn = 0;
        for (size_t i = next++; i < pieces.size(); i = next++, turn ^= 1) {
          const Piece& piece = pieces[i];
          MUST_CU(StreamSynchronize, streams[turn]);
          for (size_t done = 0; reads && done < piece.bytes;) {
            ssize_t n = pread(piece.fd, static_cast<char*>(memory[turn]) + done, piece.bytes - done,
                              piece.at + static_cast<off_t>(done));
            if (n <= 0) Must(Status(Code::IO_ERROR, "pread failed"));
            done += static_cast<size_t>(n);
          }
          if (copies) MUST_CU(MemcpyHtoDAsync, device + piece.to, memory[turn], piece.bytes, streams[turn]);
        }
        for (int i : {0, 1}) MUST_CU(StreamSynchronize, streams[i]);
        --ready;
        while (go) std::this_thread::yield();
        for (int i : {0, 1}) {
          MUST_CU(StreamDestroy, streams[i]);
          MUST_CU(MemFreeHost, memory[i]);
        }
      });
    }
    while (ready < threads) std::this_thread::yield();
    auto start = Clock::now();
    go = true;
    while (ready > 0) std::this_thread::yield();
    double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    go = false;
    for (std::thread& worker : workers) worker.join();
    best = std::max(best, static_cast<double>(total) / seconds / 1e9);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  Must(cuda::LoadCuda(&api));
  MUST_CU(DevicePrimaryCtxRetain, &context, 0);
  MUST_CU(CtxSetCurrent, context);
  std::vector<Piece> pieces;
  uint64_t total = 0;
  for (int i = 2; i < argc; ++i) {
    int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) Must(Status(Code::IO_ERROR, std::string("cannot open ") + argv[i]));
    for (off_t at = 0; at < info.st_size; at += kPiece) {
      size_t bytes = static_cast<size_t>(std::min<off_t>(kPiece, info.st_size - at));
      pieces.push_back({fd, at, bytes, total});
      total += bytes;
    }
  }
  cuda::CUdeviceptr device = 0;
  MUST_CU(MemAlloc, &device, total);
  const int threads = atoi(argv[1]);
  double copies = Rate(pieces, total, threads, device, false, true);
  double reads = Rate(pieces, total, threads, device, true, false);
  double both = Rate(pieces, total, threads, device, true, true);
  printf("{\"copies\": %.3f, \"reads\": %.3f, \"both\": %.3f}\n", copies, reads, both);
  MUST_CU(MemFree, device);
  MUST_CU(CtxSetCurrent, nullptr);
  return 0;
}
