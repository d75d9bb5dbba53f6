#include "base/thread.h"

#include <pthread.h>
#include <signal.h>

#include <memory>
#include <string>

namespace fst {
namespace {

// Raised by what the thread itself does. While blocked, they end the process without a word, past every handler.
constexpr int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};

struct Start {
  std::string name;
  std::function<void()> body;
};

void* Run(void* argument) {
  std::unique_ptr<Start> start(static_cast<Start*>(argument));
  pthread_setname_np(pthread_self(), start->name.c_str());  // here: a detached thread's id may be stale for others
  start->body();
  return nullptr;
}

}  // namespace

Status StartThread(const char* name, std::function<void()> body, size_t stack_bytes) {
  std::unique_ptr<Start> argument(new Start{std::string(name).substr(0, 15), std::move(body)});
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, stack_bytes);
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (int fault : kFaults) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  pthread_t thread;
  int error = pthread_create(&thread, &attributes, Run, argument.get());
  if (error == 0) argument.release();  // NOLINT: the thread owns it now
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (error == 0) return Status::Ok();
  return Status(
      Code::OUT_OF_HOST_MEMORY,
      Format("cannot start the thread \"%s\": %s; raise the limit of processes (ulimit -u) or lower maxThreads", name,
             ErrnoText(error).c_str()));
}

}  // namespace fst
