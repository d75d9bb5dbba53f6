// What a job's reads answer.
#include <algorithm>
#include <cerrno>

#include "emulators/hf3fs/engine.h"
#include "emulators/hf3fs/mounts.h"

namespace emu {

void Engine::Read(Job* job, std::unique_lock<std::mutex>& lock) {
  bool overlap = std::any_of(job->ios.begin(), job->ios.end(), [](const auto& io) { return io->overlaps; });
  for (const auto& io : job->ios) {
    bool linked;
    {
      Unlocked asking(lock);
      linked = LinkExists(io->iov->link);
    }
    if (job->ring->destroyed) return;  // the buffers may be gone by now
    int injected;
    if (overlap) {
      io->result = -EIO;  // the storage client refuses the whole job
    } else if (io->invalid || io->iov->mount != job->ring->mount || !linked) {
      io->result = -EINVAL;
    } else if (!iovs.Pin(io->iov.get(), settings.memlock)) {
      io->result = -EACCES;
    } else if (Injected("io", io->number, &injected)) {
      io->result = injected;
    } else {
      ReadOne(io.get(), job, lock);
    }
  }
  JoinHoles(job, lock);
}

void Engine::ReadOne(Io* io, Job* job, std::unique_lock<std::mutex>& lock) {
  const Settings& s = settings;
  const uint64_t n = io->number;
  auto nth = [n](const std::set<uint64_t>& list, uint64_t every) {
    return list.count(n) != 0 || (every != 0 && n % every == 0);
  };
  if (nth(s.eio_ios, s.eio_every) || (!s.eio_path.empty() && io->file->path.find(s.eio_path) != std::string::npos)) {
    io->result = -EIO;
    return;
  }
  const uint64_t limit = nth(s.short_ios, s.short_every) ? io->length / 2 : io->length;
  job->ring->touching++;
  {
    Unlocked reading(lock);
    io->result = io->file->Read(io->to, io->offset, limit);
    if (io->result == -EFAULT)
      Die("the buffer of io %llu was unmapped while the io was in flight", static_cast<unsigned long long>(n));
  }
  job->ring->touching--;
  touched_.notify_all();
  if (io->result == RegisteredFile::kNoAnswer) {
    job->ring->lost = true;  // its daemon is gone with it: nothing completes any more
    io->result = -ENOTCONN;
  }
  if (io->result > 0) counters.bytes += static_cast<uint64_t>(io->result);
}

// As the daemon joins the chunks that a job read, in order: a hole that is known to be one by the data behind it counts
// as read. It does not see that an io which begins with a missing chunk is another one than that before it, and adds
// what that one lacked, too.
void Engine::JoinHoles(Job* job, std::unique_lock<std::mutex>& lock) {
  constexpr uint64_t kForbidHoles = 2;
  if (job->ios.size() < 2 && (job->ring->flags & kForbidHoles) == 0) return;
  int64_t lacked = 0;
  for (const auto& io : job->ios) {
    RegisteredFile::Holes holes;
    {
      Unlocked looking(lock);
      holes = io->file->HolesOf(io->offset, io->length);
    }
    const auto length = static_cast<int64_t>(io->length);
    if (!holes.at_start) lacked = 0;
    if (io->result < 0) continue;
    const int64_t lacks = length - io->result;
    if (holes.before_data && (job->ring->flags & kForbidHoles) != 0) {
      io->result = -ENODATA;
    } else if (io->result == 0) {
      lacked += lacks;
    } else {
      io->result += lacked;
      lacked = lacks;
    }
  }
}

}  // namespace emu
