// What the 3FS copier is measured against: one I/O in flight, a buffer in two halves, one is filled while the other is
// copied from. `usrbio_baseline mount device buffer-bytes file…` prints {"bytes": n, "begin": s, "end": s}, times of
// CLOCK_MONOTONIC from the first read to the last copy; with a line on stdin it starts.
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "device/devices.h"
#include "emulators/hf3fs/client_api.h"

namespace {

using fst::CompletionQueue;
using fst::Status;

void Check(const Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.message().c_str());
  exit(1);
}
void CheckCall(int result, const char* what) {
  if (result >= 0) return;
  fprintf(stderr, "%s: %s\n", what, fst::ErrnoText(-result).c_str());
  exit(1);
}

double Now() { return std::chrono::duration<double>(fst::Clock::now().time_since_epoch()).count(); }

timespec In(int seconds) {
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  at.tv_sec += seconds;
  return at;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const std::string mount = argv[1];
  const size_t half = strtoull(argv[3], nullptr, 10) / 2;
  std::shared_ptr<fst::Device> device;
  Check(fst::OpenDevice(argv[2], false, &device));
  std::unique_ptr<const fst::usrbio::ClientApi> api;
  Check(fst::usrbio::LoadClient(&api));
  auto queue = std::make_shared<CompletionQueue>();
  std::unique_ptr<fst::CopyStream> stream;
  Check(device->NewStream(queue, &stream));
  fst::usrbio::Iov iov = {};
  fst::usrbio::Ior ring = {};
  CheckCall(api->iovcreate(&iov, mount.c_str(), 2 * half, 0, -1), "iovcreate");
  if (api->iovunlink != nullptr) api->iovunlink(&iov);  // nothing is left of it when the process is killed
  CheckCall(api->iorcreate4(&ring, mount.c_str(), 64, true, 0, 0, -1, 0), "iorcreate");
  Check(device->PinHostMemory(iov.base, 2 * half));

  if (fgetc(stdin) == EOF) return 2;
  const double begin = Now();
  uint64_t bytes = 0;
  bool copying[2] = {false, false};
  auto wait_for = [&](int which) {
    std::vector<fst::Completion> completions;
    while (copying[which]) {
      queue->Take(&completions, fst::Clock::now() + std::chrono::seconds(60));
      for (const auto& completion : completions) {
        Check(completion.status);
        copying[completion.tag] = false;
      }
    }
  };
  int which = 0;
  for (int i = 4; i < argc; ++i) {
    int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || api->reg_fd(fd, 0) > 0) return 1;
    uint64_t size = static_cast<uint64_t>(st.st_size);
    // As tensors come: a destination of 32 MiB at a time.
    std::shared_ptr<fst::DeviceBuffer> buffer;
    constexpr uint64_t kTensor = uint64_t{32} << 20;
    for (uint64_t at = 0; at < size; which = 1 - which) {
      if (at % kTensor == 0) {
        wait_for(0), wait_for(1);
        Check(device->Allocate(std::min(kTensor, size - at), &buffer));
      }
      size_t length = std::min<uint64_t>({half, size - at, kTensor - at % kTensor});
      wait_for(which);
      uint8_t* to = iov.base + static_cast<size_t>(which) * half;
      CheckCall(api->prep_io(&ring, &iov, true, to, fd, at, length, nullptr), "prep_io");
      CheckCall(api->submit_ios(&ring), "submit_ios");
      fst::usrbio::Cqe cqe;
      timespec deadline = In(60);
      if (api->wait_for_ios(&ring, &cqe, 1, 1, &deadline) != 1 || cqe.result != static_cast<int64_t>(length)) return 1;
      fst::CopyPiece piece = {reinterpret_cast<uint64_t>(to), buffer->address() + at % kTensor, length};
      copying[which] = true;
      Check(stream->Submit(&piece, 1, false, static_cast<uint64_t>(which)));
      at += length;
      bytes += length;
    }
    wait_for(0), wait_for(1);
    api->dereg_fd(fd);
    close(fd);
  }
  printf("{\"bytes\": %llu, \"begin\": %.6f, \"end\": %.6f, \"maxInFlight\": 1}\n",
         static_cast<unsigned long long>(bytes), begin, Now());
  stream.reset();
  if (!device->UnpinHostMemory(iov.base)) {
    fprintf(stderr, "the shared buffer may still be page-locked\n");
    return 1;
  }
  api->iordestroy(&ring);
  api->iovdestroy(&iov);
  return 0;
}
