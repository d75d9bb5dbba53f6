// A Unix socket that gives a descriptor, and a text with it, to each process that connects: SCM_RIGHTS, of which
// Node.js has no interface. Source: unix(7), cmsg(3).
#pragma once
#include <cstddef>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace fst {

class FdServer {
 public:
  // Listens at `path`, which only processes of this user can connect to, on a thread of its own. The socket of a
  // process that has ended is replaced. INVALID_ARGUMENT for a path that is too long for a socket or is taken,
  // IO_ERROR, OUT_OF_HOST_MEMORY. Blocks.
  static Status Listen(const std::string& path, UniqueFd fd, const std::string& text, std::unique_ptr<FdServer>* out);
  // Removes the socket, and ends the thread without waiting for it.
  ~FdServer();
  FdServer(const FdServer&) = delete;
  FdServer& operator=(const FdServer&) = delete;

 private:
  struct State;
  explicit FdServer(std::shared_ptr<State> state) : state_(std::move(state)) {}
  static void Serve(const State& state);
  std::shared_ptr<State> state_;
};

// Connects to such a socket. At most `most` bytes of text are taken. IO_ERROR (nobody listens there, no answer within
// ten seconds), INVALID_ARGUMENT for a path that is too long and for what is no such socket. Blocks.
Status ReceiveFd(const std::string& path, size_t most, UniqueFd* fd, std::string* text);

}  // namespace fst
