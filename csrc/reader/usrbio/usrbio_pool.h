// Channels without a user, kept for the next loader of their kind: to make one takes several milliseconds, since its
// buffer's pages are allocated, and the daemon maps and registers them anew.
//
// What is kept is bounded (kMaxIdle, kMaxIdleBytes), leaves room in /dev/shm for loaders of other processes, and is
// given back after kIdleTime, when room is needed (DropIdleChannels), and when exit() begins. One whose daemon refuses
// to give it up (mounted read-only) is kept beyond all of these: it would be lost for the daemon, not for this process.
// The thread that gives back runs while something is kept. All functions: any thread but the event loop's.
#pragma once
#include <chrono>
#include <cstddef>
#include <memory>

#include "reader/usrbio/usrbio_channel.h"

namespace fst::usrbio {

constexpr std::chrono::seconds kIdleTime{3};
constexpr size_t kMaxIdle = 4, kMaxIdleBytes = size_t{128} << 20;  // of the whole process

// A channel of this kind whose links and mount were checked, Attach comes next; null where none is kept. Blocks on the
// daemon.
std::unique_ptr<Channel> TakeIdleChannel(const ChannelKind& kind);

// Whether TakeIdleChannel would have one to check whose buffer has `bytes` on `numa`, of any mount.
bool KeepsIdleChannel(size_t bytes, int numa);

// Keeps a channel that is detached, or destroys it: where it is not `worth_keeping` or has no place. May block on the
// daemon.
void ReturnChannel(std::unique_ptr<Channel> channel, bool worth_keeping);

// Gives back everything that is kept, and waits for that as long as `longest`: a daemon may hang. How many went.
size_t DropIdleChannels(std::chrono::milliseconds longest);

}  // namespace fst::usrbio
