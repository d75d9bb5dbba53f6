// Streams: a thread each that runs its operations in order and late on purpose, so that a caller who does not wait sees
// wrong bytes.
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "emulators/cuda/emulator.h"

namespace fst::emu {

namespace {

constexpr unsigned char kNotThere = 0xDB;

// A GPU goes on reading pages that are page-locked when their file has become shorter, whatever they hold by then; this
// process would end where it touches their mapping. What is not there any more comes as bytes that nobody has written.
void ReadMapping(const Operation& operation) {
  size_t done = 0;
  while (done < operation.bytes) {
    const iovec to = {operation.to + done, operation.bytes - done};
    const iovec from = {const_cast<char*>(operation.from) + done, operation.bytes - done};
    const ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno != EFAULT) {  // where a container forbids it
      memmove(operation.to + done, operation.from + done, operation.bytes - done);
      return;
    }
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  memset(operation.to + done, kNotThere, operation.bytes - done);
}

// Copies or fills at the very end of the time that the model gives it, without the lock: the latest moment at which a
// correct caller's memory still has to be as it was when it issued the operation.
void Transfer(Emulator& emulator, Lock& lock, Stream& stream, Operation& operation) {
  CUresult failure = emulator.failures.Take("execute");
  if (failure != kSuccess) {
    stream.context->sticky = failure;
    return;
  }
  Clock::time_point& busy_until = emulator.devices[stream.context->device].busy_until;
  // On the model's own time line, not on the clock's: oversleeping does not add up.
  Clock::time_point end = std::max({operation.ready, busy_until, stream.not_before});
  const Device& device = emulator.devices[stream.context->device];
  const unsigned long long bandwidth = device.bandwidth != 0 ? device.bandwidth : emulator.bandwidth;
  if (bandwidth != 0) {
    end += std::chrono::nanoseconds(
        static_cast<long long>(static_cast<double>(operation.bytes) / static_cast<double>(bandwidth) * 1e9));
    busy_until = end;
  }
  lock.unlock();
  std::this_thread::sleep_until(end);
  if (operation.kind == Operation::kFill) {
    memset(operation.to, operation.value, operation.bytes);
  } else if (operation.from_read_only) {
    ReadMapping(operation);
  } else {
    memmove(operation.to, operation.staged.empty() ? operation.from : operation.staged.data(), operation.bytes);
  }
  lock.lock();
  ++emulator.counters.executed;
  emulator.counters.copied_bytes += operation.bytes;
}

void Run(Emulator& emulator, Lock& lock, Stream& stream, Operation& operation) {
  lock.unlock();
  std::this_thread::sleep_until(operation.ready);
  lock.lock();
  const CUresult& sticky = stream.context->sticky;
  emulator.changed.wait(lock, [&] { return !emulator.held || sticky != kSuccess; });
  if (sticky != kSuccess) return;  // a lost device does nothing any more
  switch (operation.kind) {
    case Operation::kCopy:
    case Operation::kFill:
      Transfer(emulator, lock, stream, operation);
      break;
    case Operation::kWait:
      if (operation.wait_for->done) break;
      emulator.changed.wait(lock, [&] { return operation.wait_for->done || sticky != kSuccess; });
      stream.not_before = Clock::now();
      break;
    case Operation::kHostFunction:
      lock.unlock();
      in_host_function = true;
      operation.function(operation.argument);
      in_host_function = false;
      lock.lock();
      break;
    case Operation::kMark:
      break;
  }
}

void Work(std::shared_ptr<Stream> stream) {
  Emulator& emulator = Emulator::Get();
  Lock lock(emulator.mutex);
  for (;;) {
    stream->work.wait(lock, [&] { return !stream->queue.empty() || stream->stop; });
    if (stream->queue.empty()) return;
    Operation& operation = stream->queue.front();
    Run(emulator, lock, *stream, operation);
    for (auto& block : operation.holds) {
      if (block != nullptr) --block->pending;
    }
    operation.mark->done = true;
    stream->queue.pop_front();
    emulator.changed.notify_all();
  }
}

}  // namespace

std::shared_ptr<Stream> Emulator::NewStream(Context* context, unsigned flags) {
  auto stream = std::make_shared<Stream>();
  stream->context = context;
  stream->flags = flags;
  stream->thread = std::thread(Work, stream);
  ReportLeaksAtExit();
  return stream;
}

const std::shared_ptr<Stream>& Emulator::NullStream(Context* context) {
  if (context->null == nullptr) context->null = NewStream(context, 0);
  return context->null;
}

std::shared_ptr<Mark> Emulator::Issue(const std::shared_ptr<Stream>& stream, Operation operation) {
  unsigned long long late = delay_us;
  if (jitter_us != 0) {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    late += random % (jitter_us + 1);
  }
  Clock::time_point ready = Clock::now() + std::chrono::microseconds(late);
  auto put = [&](Operation made) {
    made.ready = ready;
    for (auto& block : made.holds) {
      if (block != nullptr) ++block->pending;
    }
    stream->tail = made.mark;
    stream->queue.push_back(std::move(made));
  };
  auto follow = [&](const Stream& other) {
    if (Idle(other)) return;
    Operation wait;
    wait.kind = Operation::kWait;
    wait.wait_for = other.tail;
    put(std::move(wait));
  };
  Context* context = stream->context;
  if (stream == context->null) {
    for (const auto& [handle, other] : streams) {
      if (other->context == context && (other->flags & cuda::kStreamNonBlocking) == 0) follow(*other);
    }
  } else if (context->null != nullptr && (stream->flags & cuda::kStreamNonBlocking) == 0) {
    follow(*context->null);
  }
  std::shared_ptr<Mark> mark = operation.mark;
  put(std::move(operation));
  stream->work.notify_one();
  return mark;
}

void Emulator::WaitFor(Lock& lock, const std::shared_ptr<Mark>& mark) {
  changed.wait(lock, [&] { return mark->done; });
}

void Emulator::WaitIdle(Lock& lock, const Context* context) {
  changed.wait(lock, [&] {
    bool idle = context->null == nullptr || Idle(*context->null);
    for (const auto& [handle, stream] : streams) idle = idle && (stream->context != context || Idle(*stream));
    return idle;
  });
}

void Emulator::StopStream(Lock& lock, std::shared_ptr<Stream> stream) {
  stream->stop = true;
  stream->work.notify_one();
  std::thread thread = std::move(stream->thread);
  lock.unlock();
  thread.join();
  lock.lock();
}

void Emulator::DropContext(Lock& lock, Context* context) {
  std::vector<std::shared_ptr<Stream>> stopped;
  for (auto it = streams.begin(); it != streams.end();) {
    if (it->second->context == context) stopped.push_back(it->second);
    it = it->second->context == context ? streams.erase(it) : std::next(it);
  }
  if (context->null != nullptr) stopped.push_back(std::move(context->null));
  context->null = nullptr;
  for (auto it = events.begin(); it != events.end();) {
    it = it->second->context == context ? events.erase(it) : std::next(it);
  }
  for (auto& stream : stopped) StopStream(lock, std::move(stream));
  std::vector<std::shared_ptr<Block>> dropped;
  for (const auto& [base, block] : blocks) {
    if (block->context == context) dropped.push_back(block);
  }
  for (const auto& block : dropped) RemoveBlock(block);
}

}  // namespace fst::emu
