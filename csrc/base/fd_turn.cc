#include "base/fd_turn.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/io_error.h"

namespace fst {
namespace {

constexpr auto kLongestTurn = std::chrono::seconds(1);  // a store that hangs ends no turn

struct Turns {
  std::mutex mutex;
  std::condition_variable changed;
  int held = 0;  // those being opened too: what is being opened now ends soon after
  uint64_t ended = 0;
};

Turns& AllTurns() {
  static Turns* turns = new Turns;  // never destroyed: threads that outlive main() may use it
  return *turns;
}

}  // namespace

Status FdTurn::Open(const std::function<Status()>& open) {
  Turns& turns = AllTurns();
  for (;;) {
    std::unique_lock<std::mutex> lock(turns.mutex);
    const uint64_t seen = turns.ended;
    ++turns.held;
    lock.unlock();
    Status opened = open();
    if (opened.ok()) {
      held_ = true;
      return opened;
    }
    lock.lock();
    --turns.held;
    turns.changed.notify_all();
    if (!OutOfDescriptors(opened.os_error())) return opened;
    turns.changed.wait_for(lock, kLongestTurn, [&] { return turns.ended != seen || turns.held == 0; });
    if (turns.ended == seen) return opened;
  }
}

FdTurn::~FdTurn() {
  if (!held_) return;
  std::lock_guard<std::mutex> lock(AllTurns().mutex);
  --AllTurns().held;
  ++AllTurns().ended;
  AllTurns().changed.notify_all();
}

}  // namespace fst
