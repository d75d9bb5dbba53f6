// The most that any client can have of a link of the emulated 3FS: `usrbio_floor mount in-flight file…` keeps that many
// reads of 1 MiB in flight, into memory that is there already, and does nothing with the bytes. With a line on stdin it
// starts; prints {"bytes": n, "begin": s, "end": s, "maxInFlight": n}, times of CLOCK_MONOTONIC.
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/completion_queue.h"
#include "emulators/hf3fs/client_api.h"

namespace {

constexpr size_t kRead = size_t{1} << 20;

struct Read {
  int fd;
  uint64_t offset, length;
};

double Now() { return std::chrono::duration<double>(fst::Clock::now().time_since_epoch()).count(); }

void CheckCall(int result, const char* what) {
  if (result >= 0) return;
  fprintf(stderr, "%s: %s\n", what, fst::ErrnoText(-result).c_str());
  exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const char* mount = argv[1];
  const size_t in_flight = strtoull(argv[2], nullptr, 10);
  std::unique_ptr<const fst::usrbio::ClientApi> api;
  if (!fst::usrbio::LoadClient(&api).ok()) return 1;
  fst::usrbio::Iov iov = {};
  fst::usrbio::Ior ring = {};
  CheckCall(api->iovcreate(&iov, mount, in_flight * kRead, 0, -1), "iovcreate");
  if (api->iovunlink != nullptr) api->iovunlink(&iov);  // nothing is left of it when the process is killed
  CheckCall(api->iorcreate4(&ring, mount, static_cast<int>(in_flight) * 4, true, -1, 0, -1, 0), "iorcreate");
  std::fill_n(iov.base, iov.size, 1);
  std::vector<int> fds;
  std::vector<Read> reads;
  for (int i = 3; i < argc; ++i) {
    int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || api->reg_fd(fd, 0) > 0) return 1;
    fds.push_back(fd);
    uint64_t size = static_cast<uint64_t>(st.st_size);
    for (uint64_t at = 0; at < size; at += kRead) reads.push_back({fd, at, std::min<uint64_t>(kRead, size - at)});
  }

  if (fgetc(stdin) == EOF) return 2;
  const double begin = Now();
  uint64_t bytes = 0;
  size_t next = 0, done = 0;
  std::vector<size_t> free_slots(in_flight);
  for (size_t i = 0; i < in_flight; ++i) free_slots[i] = i;
  std::vector<size_t> read_of(in_flight);
  std::vector<fst::usrbio::Cqe> cqes(in_flight);
  while (done < reads.size()) {
    while (next < reads.size() && !free_slots.empty()) {
      const size_t slot = free_slots.back();
      const Read& read = reads[next];
      auto* tag = reinterpret_cast<const void*>(slot);  // NOLINT(performance-no-int-to-ptr)
      int taken = api->prep_io(&ring, &iov, true, iov.base + slot * kRead, read.fd, read.offset, read.length, tag);
      if (taken == -EAGAIN) break;
      CheckCall(taken, "prep_io");
      read_of[slot] = next++;
      free_slots.pop_back();
    }
    CheckCall(api->submit_ios(&ring), "submit_ios");
    timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 60;
    int count = api->wait_for_ios(&ring, cqes.data(), static_cast<int>(in_flight), 1, &deadline);
    if (count <= 0) return 1;
    for (int i = 0; i < count; ++i) {
      const size_t slot = reinterpret_cast<uintptr_t>(cqes[static_cast<size_t>(i)].userdata);
      if (cqes[static_cast<size_t>(i)].result != static_cast<int64_t>(reads[read_of[slot]].length)) return 1;
      bytes += reads[read_of[slot]].length;
      free_slots.push_back(slot);
      ++done;
    }
  }
  printf("{\"bytes\": %llu, \"begin\": %.6f, \"end\": %.6f, \"maxInFlight\": %zu}\n",
         static_cast<unsigned long long>(bytes), begin, Now(), std::min(in_flight, reads.size()));
  api->iordestroy(&ring);
  api->iovdestroy(&iov);
  for (int fd : fds) {
    api->dereg_fd(fd);
    close(fd);
  }
  return 0;
}
