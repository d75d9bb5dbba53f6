// NCCL's functions.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

#include "emulators/nccl/emulator.h"

namespace fst::nccl {

using emu_nccl::Broadcast;
using emu_nccl::Call;
using emu_nccl::Clock;
using emu_nccl::Comm;
using emu_nccl::Emulator;
using emu_nccl::Lock;

namespace {

constexpr size_t kPiece = 256 * 1024;

// What each broadcast begins with on the wire.
struct Announced {
  unsigned long long number, bytes;
  int root, is_end;
};

thread_local int group_depth = 0;
thread_local std::vector<Broadcast> group;

// What other threads do for a communicator ends when it does.
void WaitForAbort(const Comm& comm) {
  while (!comm.peers.aborted()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// A peer is gone, or something else went wrong: like a kernel, this then goes on until it is aborted.
void Hang(Comm& comm, int error) {
  if (error != kSuccess && !comm.peers.aborted()) comm.state = error;
  WaitForAbort(comm);
}

void CheckAnnounced(const Comm& comm, const Announced& expected, const Announced& found) {
  if (memcmp(&expected, &found, sizeof found) == 0) return;
  emu_nccl::Abort(
      "ranks differ: rank %d has broadcast %llu of %llu bytes from rank %d%s, rank %d broadcast %llu of %llu "
      "bytes from rank %d%s",
      comm.rank, expected.number, expected.bytes, expected.root, expected.is_end ? " (its end)" : "", found.root,
      found.number, found.bytes, found.root, found.is_end ? " (its end)" : "");
}

bool Give(Comm& comm, const Broadcast& what) {
  Emulator& emulator = Emulator::Get();
  const Announced header = {what.number, what.bytes, what.root, 0};
  for (int peer = 0; peer < comm.ranks; ++peer) {
    if (peer != comm.rank && !comm.peers.Send(peer, &header, sizeof header)) return false;
  }
  std::vector<char> piece(std::min<size_t>(kPiece, what.bytes));
  for (size_t done = 0; done < what.bytes; done += piece.size()) {
    size_t count = std::min<size_t>(piece.size(), what.bytes - done);
    emulator.driver.read(what.from + done, piece.data(), count);
    if (what.to != what.from) emulator.driver.write(what.to + done, piece.data(), count);
    for (int peer = 0; peer < comm.ranks; ++peer) {
      if (peer != comm.rank && !comm.peers.Send(peer, piece.data(), count)) return false;
    }
  }
  return true;
}

bool Get(Comm& comm, const Broadcast& what) {
  Emulator& emulator = Emulator::Get();
  Announced header = {};
  if (!comm.peers.Receive(what.root, &header, sizeof header)) return false;
  CheckAnnounced(comm, {what.number, what.bytes, what.root, 0}, header);
  std::vector<char> piece(std::min<size_t>(kPiece, what.bytes));
  for (size_t done = 0; done < what.bytes; done += piece.size()) {
    size_t count = std::min<size_t>(piece.size(), what.bytes - done);
    if (!comm.peers.Receive(what.root, piece.data(), count)) return false;
    emulator.driver.write(what.to + done, piece.data(), count);
  }
  emulator.received_bytes += what.bytes;
  return true;
}

// On a stream's thread.
void Execute(void* argument) {
  std::unique_ptr<Broadcast> what(static_cast<Broadcast*>(argument));
  Comm& comm = *what->comm;
  Emulator& emulator = Emulator::Get();
  int failure = 0;
  bool hangs = false, notice = false;
  unsigned long long bandwidth = 0;
  {
    Lock lock(emulator.mutex);
    failure = emulator.failures.Take("execute");
    hangs = emulator.hang != 0 && emulator.failures.calls("execute") == emulator.hang;
    notice = emulator.notice;
    bandwidth = emulator.bandwidth;
  }
  if (failure != 0 || hangs) {
    Hang(comm, failure);
  } else if (!(what->root == comm.rank ? Give(comm, *what) : Get(comm, *what))) {
    Hang(comm, notice ? kRemoteError : kSuccess);
  } else if (bandwidth != 0) {
    comm.busy_until = std::max(comm.busy_until, Clock::now());
    comm.busy_until += std::chrono::nanoseconds(
        static_cast<long long>(static_cast<double>(what->bytes) / static_cast<double>(bandwidth) * 1e9));
    std::this_thread::sleep_until(comm.busy_until);
  }
  emulator.driver.release(what->to);
  if (what->from != what->to) emulator.driver.release(what->from);
  --comm.pending;
}

// With the lock. Memory is in use from here on.
ncclResult_t Issue(Call& call, Broadcast what) {
  Emulator& emulator = call.emulator;
  Comm& comm = *what.comm;
  what.number = comm.issued++;
  call.lock.unlock();
  const bool copies = what.from != what.to;
  int refused = emulator.driver.acquire(what.to, what.bytes);
  if (refused == 0 && copies) refused = emulator.driver.acquire(what.from, what.bytes);
  if (refused != 0) {
    call.lock.lock();
    return call.Misuse(kInvalidArgument, "%s", emulator.driver.last_refusal());
  }
  ++comm.pending;
  auto argument = std::make_unique<Broadcast>(std::move(what));
  if (emulator.driver.launch(argument->stream, Execute, argument.get()) != cuda::kSuccess) {
    --comm.pending;
    emulator.driver.release(argument->to);
    if (copies) emulator.driver.release(argument->from);
    call.lock.lock();
    return call.Refuse(kUnhandledCudaError, "%s", emulator.driver.last_refusal());
  }
  argument.release();  // NOLINT: the stream owns it now
  call.lock.lock();
  return kSuccess;
}

}  // namespace

ncclResult_t ncclGetVersion(int* version) {
  Call call("ncclGetVersion");
  if (call.error != 0) return call.error;
  *version = call.emulator.version;
  return kSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  Call call("ncclGetUniqueId");
  if (call.error != 0) return call.error;
  std::random_device random;
  for (char& byte : id->internal) byte = static_cast<char>('a' + random() % 26);
  return kSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  Call call("ncclCommInitRankConfig");
  if (call.error != 0) return call.error;
  if (comm == nullptr || config == nullptr || config->magic != kApiMagic || config->size < sizeof(ncclConfig_t))
    return call.Misuse(kInvalidArgument, "with a configuration that is none");
  if (config->blocking != 0) return call.Misuse(kInvalidUsage, "of a communicator that blocks: nothing could abort it");
  if (ranks < 1 || rank < 0 || rank >= ranks) return call.Misuse(kInvalidArgument, "of rank %d of %d", rank, ranks);
  if (!call.emulator.FindDriver()) return call.Refuse(kUnhandledCudaError, "the CUDA driver is not the emulated one");
  auto made = std::make_shared<Comm>();
  call.lock.unlock();
  const bool current = call.emulator.driver.current_device(&made->device) == cuda::kSuccess;
  call.lock.lock();
  if (!current) return call.Misuse(kUnhandledCudaError, "without a current device");
  made->rank = rank;
  made->ranks = ranks;
  made->handle = reinterpret_cast<ncclComm_t>(call.emulator.next_handle += 16);
  call.emulator.comms[made->handle] = made;
  *comm = made->handle;
  const auto least = std::chrono::milliseconds(call.emulator.init_ms);
  std::thread([made, id, least] {
    std::this_thread::sleep_for(least);
    std::string why;
    if (made->peers.Connect(id, made->rank, made->ranks, made->device, &why)) {
      made->state = kSuccess;
    } else if (!why.empty()) {
      made->state = kInvalidUsage;
    }  // else it was aborted, or waits without end
  }).detach();
  return kInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  Call call("ncclCommFinalize", handle);
  if (call.error != 0) return call.error;
  std::shared_ptr<Comm> comm = call.comm;
  if (comm->finalized || comm->state != kSuccess)
    return call.Misuse(kInvalidArgument, "of a communicator that is not in use");
  comm->finalized = true;
  comm->state = kInProgress;
  const unsigned long long issued = comm->issued;
  std::thread([comm, issued] {
    while (comm->pending > 0 && !comm->peers.aborted()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    bool ended = true;
    for (int peer = 0; peer < comm->ranks && ended; ++peer) {
      const Announced end = {issued, 0, comm->rank, 1};
      if (peer != comm->rank) ended = comm->peers.Send(peer, &end, sizeof end);
    }
    for (int peer = 0; peer < comm->ranks && ended; ++peer) {
      if (peer == comm->rank) continue;
      Announced found = {};
      ended = comm->peers.Receive(peer, &found, sizeof found);
      if (ended) CheckAnnounced(*comm, {issued, 0, peer, 1}, found);
    }
    if (ended) comm->state = kSuccess;  // else it waits without end for what will not come
  }).detach();
  return kInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  Call call("ncclCommDestroy", handle, Call::kRelease);
  if (call.error != 0) return call.error;
  if (!call.comm->finalized || call.comm->state != kSuccess)
    return call.Misuse(kInvalidUsage, "of a communicator that is not finalized: it would wait for other ranks");
  call.emulator.comms.erase(handle);
  return call.late;
}

ncclResult_t ncclCommAbort(ncclComm_t handle) {
  Call call("ncclCommAbort", handle, Call::kRelease);
  if (call.error != 0) return call.error;
  call.comm->peers.Abort();
  call.emulator.comms.erase(handle);
  return call.late;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  Call call("ncclCommGetAsyncError", handle, Call::kRelease);
  if (call.error != 0) return call.error;
  if (call.late != 0) call.comm->state = call.late;
  *error = call.comm->state;
  return kSuccess;
}

const char* ncclGetErrorString(ncclResult_t error) {
  switch (error) {
    case kSuccess:
      return "no error";
    case kUnhandledCudaError:
      return "unhandled cuda error";
    case kSystemError:
      return "unhandled system error";
    case kInternalError:
      return "internal error";
    case kInvalidArgument:
      return "invalid argument";
    case kInvalidUsage:
      return "invalid usage";
    case kRemoteError:
      return "remote process exited or there was a network error";
    case kInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}

const char* ncclGetLastError(ncclComm_t /*comm*/) {
  static thread_local std::string text;
  text = emu_nccl::LastRefusal();
  return text.c_str();
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t handle,
                           cuda::CUstream stream) {
  Call call("ncclBroadcast", handle);
  if (call.error != 0) return call.error;
  Comm& comm = *call.comm;
  if (comm.state != kSuccess || comm.finalized)
    return call.Misuse(kInvalidUsage, "of a communicator whose state is %d", comm.state.load());
  if (type != kUint8) return call.Misuse(kInvalidArgument, "of the type %d, of which this knows none", type);
  if (root < 0 || root >= comm.ranks) return call.Misuse(kInvalidArgument, "from rank %d of %d", root, comm.ranks);
  cuda::CUdevice device = -1;
  call.lock.unlock();
  (void)call.emulator.driver.current_device(&device);
  call.lock.lock();
  if (device != comm.device)
    return call.Misuse(kInvalidUsage, "with device %d current, not that of the communicator, %d", device, comm.device);
  const auto target = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(to));
  const auto source = static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(from));
  Broadcast what = {call.comm, root == comm.rank ? source : target, target, count, 0, root, stream};
  if (group_depth == 0) return Issue(call, std::move(what));
  group.push_back(std::move(what));
  return kSuccess;
}

ncclResult_t ncclGroupStart() {
  Call call("ncclGroupStart");
  if (call.error != 0) return call.error;
  ++group_depth;
  return kSuccess;
}

ncclResult_t ncclGroupEnd() {
  Call call("ncclGroupEnd");
  std::vector<Broadcast> issued;
  if (group_depth == 1) issued.swap(group);
  if (group_depth > 0)
    --group_depth;
  else
    return call.Misuse(kInvalidUsage, "without ncclGroupStart");
  if (call.error != 0) return call.error;
  for (Broadcast& what : issued) {
    ncclResult_t result = Issue(call, std::move(what));
    if (result != kSuccess) return result;
  }
  return kSuccess;
}

}  // namespace fst::nccl
