#include "base/exit_gate.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>

namespace fst {
namespace {

constexpr auto kLongestExit = std::chrono::seconds(1);

// Constant-initialised and trivially destroyed: usable at any moment of the process.
std::atomic<int> inside{0};
std::atomic<bool> closed{false};
std::atomic<pthread_t> closer;  // the thread that runs exit(); set before `closed`
std::atomic<void (*)()> before_closing{nullptr};

void Close() {
  if (closed.load()) return;
  if (void (*give_back)() = before_closing.exchange(nullptr)) give_back();
  closer.store(pthread_self());
  closed.store(true);
  auto deadline = std::chrono::steady_clock::now() + kLongestExit;
  while (inside.load() > 0 && std::chrono::steady_clock::now() < deadline) usleep(100);
}

}  // namespace

Status ExitGate::CloseBeforeDestructors() {
  if (atexit(Close) == 0) return Status::Ok();
  return Status(Code::OUT_OF_HOST_MEMORY, "atexit failed: the process has no memory left");
}

void ExitGate::BeforeClosing(void (*give_back)()) { before_closing.store(give_back); }

ExitGate::Call::Call() : open_(true) {
  // Counted first, then looked: either Close() sees the count, or this sees that it is closed.
  inside.fetch_add(1);
  if (!closed.load()) return;
  inside.fetch_sub(1);
  open_ = false;
  if (pthread_equal(closer.load(), pthread_self())) return;
  for (;;) pause();
}

ExitGate::Call::~Call() {
  if (open_) inside.fetch_sub(1);
}

}  // namespace fst
