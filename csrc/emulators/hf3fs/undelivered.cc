#include "emulators/hf3fs/undelivered.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "emulators/hf3fs/settings.h"

namespace emu {
namespace {

// Iovs with a failed read in them at a time. One more is not watched.
constexpr size_t kMost = 256;

const char kReleased[] = "";

uintptr_t PageSize() {
  static const uintptr_t size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

uintptr_t Down(uintptr_t address) { return address / PageSize() * PageSize(); }
uintptr_t Up(uintptr_t address) { return Down(address + PageSize() - 1); }

bool Protect(uintptr_t begin, uintptr_t end, int protection) {
  return begin >= end ||
         mprotect(reinterpret_cast<void*>(begin), end - begin, protection) == 0;  // NOLINT(performance-no-int-to-ptr)
}

enum class Access { kRead, kWrite, kUnknown };

Access AccessOf(const void* context) {
#if defined(__x86_64__)
  constexpr greg_t kWriteBit = 2;  // of the page fault's error code
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  return (registers[REG_ERR] & kWriteBit) != 0 ? Access::kWrite : Access::kRead;
#elif defined(__aarch64__)
  constexpr uint64_t kWriteNotRead = uint64_t{1} << 6;  // of the exception syndrome of a data abort
  const auto& records = static_cast<const ucontext_t*>(context)->uc_mcontext.__reserved;
  for (size_t at = 0; at + sizeof(esr_context) <= sizeof records;) {
    const auto* record = reinterpret_cast<const esr_context*>(records + at);
    if (record->head.magic == ESR_MAGIC) return (record->esr & kWriteNotRead) != 0 ? Access::kWrite : Access::kRead;
    if (record->head.magic == 0 || record->head.size == 0) break;
    at += record->head.size;
  }
  return Access::kUnknown;
#else
  (void)context;
  return Access::kUnknown;
#endif
}

}  // namespace

// The handler takes no lock and no memory: faults come anywhere in a client's code.
struct Faults {
  static std::atomic<Undelivered*> watched[kMost];
  static std::atomic<int> looking;  // handlers that may use what is in `watched`
  static struct sigaction before;

  static void Watch() {
    PageSize();
    struct sigaction action = {};
    action.sa_sigaction = Handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGSEGV, &action, &before) != 0) Die("sigaction failed with errno %d", errno);
  }

  static void Handle(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    ++looking;
    const bool handled = info->si_code == SEGV_ACCERR && Look(reinterpret_cast<uintptr_t>(info->si_addr), context);
    --looking;
    if (!handled) PassOn(signal, info, context);
    errno = error;
  }

  // False where the address is none of ours.
  static bool Look(uintptr_t address, const void* context) {
    std::atomic<const char*>* found = nullptr;
    const char* why = nullptr;
    for (const auto& any : watched) {
      const Undelivered* iov = any;
      std::atomic<const char*>* state = iov == nullptr ? nullptr : iov->StateOf(address);
      const char* text = state == nullptr ? nullptr : state->load();
      if (text == nullptr || (why != nullptr && text == kReleased)) continue;
      found = state;
      why = text;
    }
    if (found == nullptr) return false;
    // One that another thread released since the fault is touched once more.
    if (why != kReleased) {
      // What reads is client code: it holds no lock that the clean-up before the end needs.
      if (AccessOf(context) == Access::kRead) Die("%s", why);
      *found = kReleased;
    }
    return Protect(Down(address), Down(address) + PageSize(), PROT_READ | PROT_WRITE);
  }

  static void PassOn(int signal, siginfo_t* info, void* context) {
    if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
    // The access is made again, and ends the process; a signal that somebody sent has to be sent again.
    struct sigaction none = {};
    none.sa_handler = SIG_DFL;
    sigaction(SIGSEGV, &none, nullptr);
    if (info->si_code <= 0) (void)raise(signal);
  }
};

std::atomic<Undelivered*> Faults::watched[kMost];
std::atomic<int> Faults::looking{0};
struct sigaction Faults::before;

Undelivered::Undelivered(const uint8_t* base, size_t size)
    : first_(Down(reinterpret_cast<uintptr_t>(base))),
      pages_((Up(reinterpret_cast<uintptr_t>(base) + size) - first_) / PageSize()),
      states_(new std::atomic<const char*>[pages_]()) {
  static std::once_flag once;
  std::call_once(once, Faults::Watch);
  for (auto& free : Faults::watched) {
    Undelivered* none = nullptr;
    watched_ = free.compare_exchange_strong(none, this);
    if (watched_) break;
  }
}

Undelivered::~Undelivered() {
  for (auto& any : Faults::watched) {
    Undelivered* self = this;
    if (any.compare_exchange_strong(self, nullptr)) break;
  }
  while (Faults::looking != 0) sched_yield();
}

std::atomic<const char*>* Undelivered::StateOf(uintptr_t address) const {
  if (address < first_ || (address - first_) / PageSize() >= pages_) return nullptr;
  return &states_[(address - first_) / PageSize()];
}

void Undelivered::Withhold(uint8_t* begin, uint8_t* end, std::string why) {
  const uintptr_t from = Up(reinterpret_cast<uintptr_t>(begin)), to = Down(reinterpret_cast<uintptr_t>(end));
  if (from >= to || !watched_) return;
  whys_.push_back(std::move(why));
  for (uintptr_t page = from; page < to; page += PageSize()) *StateOf(page) = whys_.back().c_str();
  Protect(from, to, PROT_NONE);
}

void Undelivered::Release(const uint8_t* begin, const uint8_t* end) {
  const uintptr_t from = Down(reinterpret_cast<uintptr_t>(begin)), to = Up(reinterpret_cast<uintptr_t>(end));
  for (const auto& any : Faults::watched) {
    const Undelivered* iov = any;
    if (iov == nullptr) continue;
    for (uintptr_t page = from; page < to; page += PageSize()) {
      std::atomic<const char*>* state = iov->StateOf(page);
      if (state == nullptr || *state == nullptr || *state == kReleased) continue;
      *state = kReleased;
      Protect(page, page + PageSize(), PROT_READ | PROT_WRITE);
    }
  }
}

void Undelivered::Unwatch() {
  struct sigaction now;
  if (sigaction(SIGSEGV, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == Faults::Handle)
    sigaction(SIGSEGV, &Faults::before, nullptr);
}

}  // namespace emu
