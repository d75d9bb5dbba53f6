#include "base/fd_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/io_error.h"
#include "base/memfd.h"
#include "base/thread.h"

namespace fst {
namespace {

constexpr char kGreeting = 'F';
constexpr int kDescriptors = 2;    // the one that is given, and a memfd with the text
constexpr int kMostReceived = 16;  // of a stranger, who sends more
constexpr int kSecondsToAnswer = 10;
constexpr int kRetryMs = 20;
constexpr int kTurnMs = 2000;

Status Failed(const std::string& path, const std::string& what, int error) {
  return IoError(path, "cannot " + what + " " + path, error);
}

Status AddressOf(const std::string& path, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address->sun_path || path.find('\0') != std::string::npos) {
    return Status(Code::INVALID_ARGUMENT, Format("the path of a socket has 1 to %zu bytes, \"%s\" has %zu",
                                                 sizeof address->sun_path - 1, path.c_str(), path.size()));
  }
  memcpy(address->sun_path, path.data(), path.size());
  return Status::Ok();
}

Status NewSocket(const std::string& path, int flags, UniqueFd* out) {
  *out = UniqueFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  return out->valid() ? Status::Ok() : Failed(path, "make a socket for", errno);
}

const sockaddr* Plain(const sockaddr_un& address) { return reinterpret_cast<const sockaddr*>(&address); }

// Whether nobody listens at the socket any more.
bool IsAbandoned(const sockaddr_un& address) {
  struct stat found;
  if (lstat(address.sun_path, &found) != 0 || !S_ISSOCK(found.st_mode)) return false;
  UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return probe.valid() && connect(probe.get(), Plain(address), sizeof address) != 0 && errno == ECONNREFUSED;
}

// A server's turn in a folder: between bind(2) and listen(2) its socket looks like one that was abandoned, and what one
// removes for that may be another's by then. Locks the folder itself; where that is not possible, or somebody else
// keeps it locked, there are no turns.
class TurnInFolder {
 public:
  explicit TurnInFolder(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    folder_ = UniqueFd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (int waited = 0; folder_.valid() && waited < kTurnMs; waited += kRetryMs) {
      if (flock(folder_.get(), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
      poll(nullptr, 0, kRetryMs);
    }
  }

 private:
  UniqueFd folder_;  // closing it ends the turn
};

// A memfd with the text: what a client does with it holds up nobody.
Status MemfdOf(const std::string& path, const std::string& text, UniqueFd* out) {
  *out = UniqueFd(NewMemfd("fastsafetensors-text"));
  if (!out->valid()) return Failed(path, "make a memfd for", errno);
  for (size_t done = 0; done < text.size();) {
    const ssize_t wrote = write(out->get(), text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return Failed(path, "write the description for", errno);
    done += static_cast<size_t>(wrote);
  }
  if (fcntl(out->get(), F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0)
    return Failed(path, "seal the description for", errno);
  return Status::Ok();
}

// A byte, and descriptors beside it.
struct Message {
  explicit Message(size_t bytes) {
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = room;
    header.msg_controllen = bytes;
  }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  char byte = 0;
  iovec part = {&byte, 1};
  alignas(cmsghdr) char room[CMSG_SPACE(kMostReceived * sizeof(int))] = {};
  msghdr header = {};
};

void Send(int client, const int (&fds)[kDescriptors]) {
  Message message(CMSG_SPACE(sizeof fds));
  message.byte = kGreeting;
  cmsghdr* header = CMSG_FIRSTHDR(&message.header);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fds);
  memcpy(CMSG_DATA(header), fds, sizeof fds);
  // A client that is gone, or has no room for so little, gets nothing.
  (void)sendmsg(client, &message.header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

struct FdServer::State {
  sockaddr_un address;
  dev_t device = 0;
  ino_t inode = 0;
  UniqueFd listening, fd, text, stop;
};

Status FdServer::Listen(const std::string& path, UniqueFd fd, const std::string& text, std::unique_ptr<FdServer>* out) {
  auto state = std::make_shared<State>();
  FST_RETURN_IF_ERROR(AddressOf(path, &state->address));
  FST_RETURN_IF_ERROR(NewSocket(path, SOCK_NONBLOCK, &state->listening));
  FST_RETURN_IF_ERROR(MemfdOf(path, text, &state->text));
  state->stop = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state->stop.valid()) return Failed(path, "make an eventfd for", errno);
  state->fd = std::move(fd);
  // Before it has a name: bind(2) gives the file this mode.
  if (fchmod(state->listening.get(), S_IRUSR | S_IWUSR) != 0) return Failed(path, "protect", errno);
  const int socket = state->listening.get();
  const TurnInFolder turn(path);
  int bound = bind(socket, Plain(state->address), sizeof state->address);
  if (bound != 0 && errno == EADDRINUSE && IsAbandoned(state->address) && unlink(path.c_str()) == 0)
    bound = bind(socket, Plain(state->address), sizeof state->address);
  if (bound != 0 && errno == EADDRINUSE)
    return Status(Code::INVALID_ARGUMENT, path + " exists already; serve at a path that is free").At(path);
  if (bound != 0) return Failed(path, "listen at", errno);
  struct stat made;
  if (stat(path.c_str(), &made) == 0) {
    state->device = made.st_dev;
    state->inode = made.st_ino;
  }
  std::unique_ptr<FdServer> server(new FdServer(state));  // from here on the name is removed again
  if (listen(socket, SOMAXCONN) != 0) return Failed(path, "listen at", errno);
  FST_RETURN_IF_ERROR(StartThread("fst-serve", [state] { Serve(*state); }));
  *out = std::move(server);
  return Status::Ok();
}

void FdServer::Serve(const State& state) {
  for (;;) {
    pollfd waits[] = {{state.listening.get(), POLLIN, 0}, {state.stop.get(), POLLIN, 0}};
    if (poll(waits, 2, -1) < 0 && errno != EINTR) return;
    if (waits[1].revents != 0) return;
    UniqueFd client(accept4(state.listening.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (client.valid()) {
      Send(client.get(), {state.fd.get(), state.text.get()});
    } else if (OutOfDescriptors(errno) || errno == ENOMEM || errno == ENOBUFS) {
      poll(&waits[1], 1, kRetryMs);  // until others were closed; the client waits
    }
  }
}

FdServer::~FdServer() {
  // Not a file that took its place.
  struct stat found;
  if (lstat(state_->address.sun_path, &found) == 0 && found.st_dev == state_->device && found.st_ino == state_->inode)
    unlink(state_->address.sun_path);
  const uint64_t one = 1;
  (void)!write(state_->stop.get(), &one, sizeof one);
}

Status ReceiveFd(const std::string& path, size_t most, UniqueFd* fd, std::string* text) {
  sockaddr_un address;
  FST_RETURN_IF_ERROR(AddressOf(path, &address));
  UniqueFd socket;
  FST_RETURN_IF_ERROR(NewSocket(path, 0, &socket));
  const timeval limit = {kSecondsToAnswer, 0};
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);  // of connect(2)
  if (connect(socket.get(), Plain(address), sizeof address) != 0) return Failed(path, "connect to", errno);
  Message message(sizeof message.room);
  ssize_t got;
  do got = recvmsg(socket.get(), &message.header, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0) return Failed(path, "receive from", errno);
  std::vector<UniqueFd> fds;
  msghdr* found = &message.header;
  for (cmsghdr* header = CMSG_FIRSTHDR(found); header != nullptr; header = CMSG_NXTHDR(found, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= header->cmsg_len; at += sizeof(int)) {
      int received;
      memcpy(&received, CMSG_DATA(header) + at, sizeof received);
      fds.emplace_back(received);
    }
  }
  auto refused = [&](const char* what) {
    return Status(Code::INVALID_ARGUMENT, path + " " + what + "; expected a socket of serveHandle()").At(path);
  };
  if (got != 1 || message.byte != kGreeting || fds.size() != kDescriptors) return refused("sent no descriptors");
  // Shared memory alone: to read any other file could hang.
  struct stat info;
  if (fcntl(fds[1].get(), F_GET_SEALS) < 0 || fstat(fds[1].get(), &info) != 0) return refused("sent no description");
  if (static_cast<uint64_t>(info.st_size) > most) return refused("sent a description that is too long");
  text->resize(static_cast<size_t>(info.st_size));
  for (size_t done = 0; done < text->size();) {
    const ssize_t read = pread(fds[1].get(), text->data() + done, text->size() - done, static_cast<off_t>(done));
    if (read < 0 && errno == EINTR) continue;
    if (read <= 0) return refused("sent a description that cannot be read");
    done += static_cast<size_t>(read);
  }
  *fd = std::move(fds[0]);
  return Status::Ok();
}

}  // namespace fst
