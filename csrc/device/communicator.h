// One rank's end of an NCCL communicator: broadcasts between the GPUs of several ranks, on a stream of its own. NCCL's
// calls are made on a thread of it and never block for long (ncclConfig_t.blocking = 0), so that what hangs, because
// another rank has died, can be aborted. Source: NCCL's user guide, "Fault Tolerance".
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "device/cuda_device.h"
#include "device/nccl_api.h"

namespace fst {

// Bytes that rank `root` has at `from` and all ranks get at `to`. On ranks but the root, `from` is null.
struct BroadcastPiece {
  std::shared_ptr<DeviceBuffer> from, to;
  size_t from_offset, to_offset, length;  // ranges of the buffers, length > 0
  int root;
};

class Communicator {
 public:
  struct Options {
    std::shared_ptr<Device> device;
    nccl::ncclUniqueId id;
    int rank, ranks;
  };
  using Done = std::function<void(Status)>;

  // Starts the thread, which does nothing yet. DEVICE_UNAVAILABLE for what is no GPU with memory of its own,
  // OUT_OF_HOST_MEMORY. Any thread.
  static Status Open(Options options, std::shared_ptr<Communicator>* out);
  // As Close(), without waiting.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Carries out `pieces`, all ranks the same of the same lengths in the same order; the first call of all connects the
  // ranks. `done` is called once, on the communicator's thread, when they have arrived; or with COPIER_UNAVAILABLE,
  // CUDA_ERROR, CLOSED, OUT_OF_DEVICE_MEMORY, or STALLED when nothing has come for `stall` in which this process ran.
  // After an error the communicator is over: later calls fail with the same. Until what was begun has ended, also after
  // an error, the buffers live. Any thread.
  void Broadcast(std::vector<BroadcastPiece> pieces, std::chrono::milliseconds stall, Done done);

  // Other ranks wait for what this one will not send: what is in flight, and later calls, fail with CLOSED, and Close()
  // aborts in place of ending together with the others. Any thread.
  void Abandon();

  // Lets the other ranks end what they have of this one, for five seconds at most, and frees the communicator; then
  // calls `closed`, on its thread. What is in flight fails with CLOSED. May be called again. Any thread.
  void Close(std::function<void()> closed);

 private:
  class State;
  explicit Communicator(std::shared_ptr<State> state) : state_(std::move(state)) {}
  const std::shared_ptr<State> state_;
};

}  // namespace fst
