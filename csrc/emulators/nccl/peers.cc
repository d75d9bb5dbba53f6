// How ranks find each other: rank n listens at an abstract socket named after the id and n, and connects to those below
// it. A rank that comes with another id is waited for without end, as by NCCL.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

#include "emulators/nccl/emulator.h"

namespace fst::emu_nccl {

namespace {

struct Hello {
  int rank, ranks, device;
};

constexpr int kLookMs = 5;

socklen_t AddressOf(const nccl::ncclUniqueId& id, int rank, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  std::string name = "fst-emu-nccl-" + std::string(id.internal, 32) + "-" + std::to_string(rank);
  memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

}  // namespace

Peers::~Peers() {
  for (int fd : fds_) {
    if (fd >= 0) close(fd);
  }
}

void Peers::Set(int peer, int fd) {
  std::lock_guard<std::mutex> lock(mutex_);
  fds_[static_cast<size_t>(peer)] = fd;
}

void Peers::Abort() {
  aborted_ = true;
  std::lock_guard<std::mutex> lock(mutex_);
  for (int fd : fds_) {
    if (fd >= 0) shutdown(fd, SHUT_RDWR);
  }
}

bool Peers::Connect(const nccl::ncclUniqueId& id, int rank, int ranks, int device, std::string* why) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    fds_.assign(static_cast<size_t>(ranks), -1);
  }
  sockaddr_un address;
  socklen_t length = AddressOf(id, rank, &address);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(listener, ranks) != 0) {
    *why = "rank " + std::to_string(rank) + " is there twice";
    close(listener);
    return false;
  }
  const Hello hello = {rank, ranks, device};
  bool connected = true;
  for (int peer = 0; peer < rank && connected; ++peer) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    length = AddressOf(id, peer, &address);
    while (!aborted_ && connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(kLookMs));
    Set(peer, fd);
    Hello other = {};
    connected = !aborted_ && Send(peer, &hello, sizeof hello) && Receive(peer, &other, sizeof other);
    if (connected && other.ranks != ranks) *why = "the ranks do not agree on how many they are";
    if (connected && other.device == device) *why = "two ranks have the same GPU";
  }
  for (int peer = rank + 1; peer < ranks && connected; ++peer) connected = Accept(listener, rank, ranks, device, why);
  close(listener);
  return connected && why->empty();
}

bool Peers::Accept(int listener, int rank, int ranks, int device, std::string* why) {
  pollfd waiting = {listener, POLLIN, 0};
  while (!aborted_ && poll(&waiting, 1, kLookMs) <= 0) continue;
  if (aborted_) return false;
  int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return false;
  Hello other = {};
  const Hello hello = {rank, ranks, device};
  bool said = recv(fd, &other, sizeof other, MSG_WAITALL) == sizeof other;
  if (!said || other.rank < 0 || other.rank >= ranks) {
    *why = "a rank came that there is not";
    close(fd);
    return false;
  }
  Set(other.rank, fd);
  if (other.ranks != ranks) *why = "the ranks do not agree on how many they are";
  if (other.device == device) *why = "two ranks have the same GPU";
  return Send(other.rank, &hello, sizeof hello);
}

bool Peers::Send(int peer, const void* bytes, size_t count) {
  const char* at = static_cast<const char*>(bytes);
  while (count > 0) {
    ssize_t sent = send(fds_[static_cast<size_t>(peer)], at, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0 || aborted_) return false;
    at += sent;
    count -= static_cast<size_t>(sent);
  }
  return !aborted_;
}

bool Peers::Receive(int peer, void* bytes, size_t count) {
  char* at = static_cast<char*>(bytes);
  while (count > 0) {
    ssize_t got = recv(fds_[static_cast<size_t>(peer)], at, count, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || aborted_) return false;
    at += got;
    count -= static_cast<size_t>(got);
  }
  return !aborted_;
}

}  // namespace fst::emu_nccl
