#include "base/read_lease.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/task_pool.h"
#include "base/thread.h"

namespace fst {
namespace {

using Clock = std::chrono::steady_clock;

constexpr timespec kRetryAfter = {0, 500 * 1000 * 1000};
constexpr int kMostTries = 100;  // longer than the kernel makes a writer wait by default

// Sent to the thread alone, which has it blocked and takes it by sigtimedwait: nobody else's use of it is touched.
int Signal() { return SIGRTMIN + 7; }

struct Table {
  std::mutex mutex;  // not held while a holder is called
  std::condition_variable changed;
  struct Lease {
    std::weak_ptr<LeaseHolder> holder;
    uint64_t number = 0;           // of the lease: descriptors are used again
    int tries = 0;                 // OnBreak() has returned false so often
    bool served = false;           // OnBreak() is under way
    Clock::time_point not_before;  // when it may be called again
  };
  std::map<int, Lease> leases;  // by descriptor
  uint64_t taken = 0;           // ever
  bool runs = false;            // the thread, from before it is started until it has decided to end
  pid_t thread = 0;             // 0 until it has begun
  int taking = 0;               // calls of TakeReadLease that are under way

  bool Unused() const { return leases.empty() && taking == 0; }
  // With the lock: the thread looks at all leases. By a signal that needs no place in the queue of signals.
  void Wake() const {
    if (thread != 0) syscall(SYS_tgkill, getpid(), thread, SIGIO);
  }
};

Table& TheTable() {
  static Table* table = new Table;  // never destroyed: the thread may outlive main()
  return *table;
}

struct Broken {
  int fd;
  uint64_t number;
  std::shared_ptr<LeaseHolder> holder;
};

// With the lock: those that are to be served now. A holder that is gone is about to close its descriptor, which ends
// the lease. *later: others are to be served again after a while.
std::vector<Broken> FindBroken(Table& table, bool* later) {
  std::vector<Broken> broken;
  const Clock::time_point now = Clock::now();
  for (auto& [fd, lease] : table.leases) {
    if (lease.served || HoldsReadLease(fd)) continue;
    if (lease.not_before > now) {
      *later = true;
    } else if (auto alive = lease.holder.lock()) {
      lease.served = true;
      broken.push_back({fd, lease.number, std::move(alive)});
    }
  }
  return broken;
}

void Serve(Table& table, const Broken& broken) {
  const bool served = broken.holder->OnBreak();
  bool lost = !served;
  {
    std::lock_guard<std::mutex> lock(table.mutex);
    auto found = table.leases.find(broken.fd);
    if (found == table.leases.end() || found->second.number != broken.number) return;  // its holder has given it back
    Table::Lease& lease = found->second;
    if (!served && ++lease.tries < kMostTries) {
      lease.served = false;
      lease.not_before = Clock::now() + std::chrono::nanoseconds(kRetryAfter.tv_nsec);
      return table.Wake();
    }
    table.leases.erase(found);
    lost |= fcntl(broken.fd, F_SETLEASE, F_UNLCK) != 0;
    if (table.Unused()) table.Wake();
  }
  if (lost) broken.holder->OnLost();
}

void Run() {
  Table& table = TheTable();
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, Signal());
  sigaddset(&signals, SIGIO);  // from Wake, and from the kernel when the queue of signals is full
  {
    std::lock_guard<std::mutex> lock(table.mutex);
    table.thread = static_cast<pid_t>(syscall(SYS_gettid));
    table.changed.notify_all();
  }
  TaskPool servers("fst-detach", MostLeasesServed());
  for (;;) {
    std::vector<Broken> broken;
    bool later = false;
    {
      std::lock_guard<std::mutex> lock(table.mutex);
      if (table.Unused()) {
        table.runs = false;
        table.thread = 0;
        return;
      }
      broken = FindBroken(table, &later);
    }
    for (Broken& lease : broken) {
      auto serve = [&table, lease = std::move(lease)] { Serve(table, lease); };
      if (!servers.Post(serve).ok()) serve();
    }
    broken.clear();
    // Any signal means a look at all leases: one may stand for several.
    sigtimedwait(&signals, nullptr, later ? &kRetryAfter : nullptr);
  }
}

}  // namespace

int MostLeasesServed() { return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)); }

int TakeReadLease(int fd, std::weak_ptr<LeaseHolder> holder) {
  Table& table = TheTable();
  std::unique_lock<std::mutex> lock(table.mutex);
  if (!table.runs) {
    if (!StartThread("fst-lease", Run).ok()) return ENOMEM;  // EAGAIN would say that somebody writes
    table.runs = true;
  }
  ++table.taking;
  table.changed.wait(lock, [&] { return table.thread != 0; });
  --table.taking;
  const f_owner_ex owner = {F_OWNER_TID, table.thread};
  if (fcntl(fd, F_SETSIG, Signal()) == 0 && fcntl(fd, F_SETOWN_EX, &owner) == 0 &&
      fcntl(fd, F_SETLEASE, F_RDLCK) == 0) {
    table.leases[fd] = {std::move(holder), ++table.taken, 0, false, {}};
    return 0;
  }
  const int error = errno;
  if (table.Unused()) table.Wake();
  return error;
}

bool HoldsReadLease(int fd) {
  // While somebody waits the kernel names what the lease is to become, afterwards what is left: F_UNLCK both times.
  return fcntl(fd, F_GETLEASE) == F_RDLCK;
}

void EndReadLease(int fd) {
  Table& table = TheTable();
  std::lock_guard<std::mutex> lock(table.mutex);
  if (table.leases.erase(fd) == 0) return;
  fcntl(fd, F_SETLEASE, F_UNLCK);
  if (table.Unused()) table.Wake();
}

}  // namespace fst
