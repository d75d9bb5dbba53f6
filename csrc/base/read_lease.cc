#include "base/read_lease.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <vector>

#include "base/thread.h"

namespace fst {
namespace {

constexpr timespec kRetryAfter = {0, 500 * 1000 * 1000};
constexpr int kMostTries = 100;  // longer than the kernel makes a writer wait by default

// Sent to the thread alone, which has it blocked and takes it by sigtimedwait: nobody else's use of it is touched.
int Signal() { return SIGRTMIN + 7; }

struct Table {
  std::mutex mutex;  // not held while a holder is called
  std::condition_variable changed;
  struct Lease {
    std::weak_ptr<LeaseHolder> holder;
    int tries = 0;  // OnBreak() has returned false so often
  };
  std::map<int, Lease> leases;  // by descriptor
  bool runs = false;            // the thread, from before it is started until it has decided to end
  pid_t thread = 0;             // 0 until it has begun
  int taking = 0;               // calls of TakeReadLease that are under way

  bool Unused() const { return leases.empty() && taking == 0; }
  // With the lock: the thread looks at all leases.
  void Wake() const {
    if (thread != 0) syscall(SYS_tgkill, getpid(), thread, Signal());
  }
};

Table& TheTable() {
  static Table* table = new Table;  // never destroyed: the thread may outlive main()
  return *table;
}

struct Broken {
  int fd;
  std::shared_ptr<LeaseHolder> holder;
};

// A holder that is gone is about to close its descriptor, which ends the lease.
std::vector<Broken> FindBroken(Table& table) {
  std::vector<Broken> broken;
  for (auto& [fd, lease] : table.leases) {
    // While somebody waits the kernel names what the lease is to become, afterwards what is left: F_UNLCK both times.
    if (fcntl(fd, F_GETLEASE) == F_RDLCK) continue;
    if (auto alive = lease.holder.lock()) broken.push_back({fd, std::move(alive)});
  }
  return broken;
}

// True when the lease is over.
bool Serve(Table& table, const Broken& broken) {
  const bool served = broken.holder->OnBreak();
  bool lost = !served;
  {
    std::lock_guard<std::mutex> lock(table.mutex);
    auto lease = table.leases.find(broken.fd);
    if (lease == table.leases.end()) return true;  // its holder has given it back
    if (!served && ++lease->second.tries < kMostTries) return false;
    table.leases.erase(lease);
    lost |= fcntl(broken.fd, F_SETLEASE, F_UNLCK) != 0;
  }
  if (lost) broken.holder->OnLost();
  return true;
}

void Run() {
  Table& table = TheTable();
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, Signal());
  sigaddset(&signals, SIGIO);  // sent instead when the queue of signals is full
  {
    std::lock_guard<std::mutex> lock(table.mutex);
    table.thread = static_cast<pid_t>(syscall(SYS_gettid));
    table.changed.notify_all();
  }
  for (;;) {
    std::vector<Broken> broken;
    {
      std::lock_guard<std::mutex> lock(table.mutex);
      if (table.Unused()) {
        table.runs = false;
        table.thread = 0;
        return;
      }
      broken = FindBroken(table);
    }
    bool again = false;
    for (const Broken& lease : broken) again |= !Serve(table, lease);
    if (!broken.empty() && !again) continue;  // the last one may have gone
    // Any signal means a look at all leases: one may stand for several.
    sigtimedwait(&signals, nullptr, again ? &kRetryAfter : nullptr);
  }
}

}  // namespace

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
    table.leases[fd] = {std::move(holder)};
    return 0;
  }
  const int error = errno;
  if (table.Unused()) table.Wake();
  return error;
}

void EndReadLease(int fd) {
  Table& table = TheTable();
  std::lock_guard<std::mutex> lock(table.mutex);
  if (table.leases.erase(fd) == 0) return;
  fcntl(fd, F_SETLEASE, F_UNLCK);
  if (table.Unused()) table.Wake();
}

}  // namespace fst
