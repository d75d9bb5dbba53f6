// Keeps threads out of shared libraries that exit() is taking down. Nothing of ours is joined at exit, so a thread may
// call into a library while its static objects are being destroyed: a crash in place of the exit code.
#pragma once
#include "base/status.h"

namespace fst {

class ExitGate {
 public:
  // Call it after each dlopen whose functions are called from threads of ours: exit() runs what was registered last
  // first, so the gate is closed before that library's destructors run. Closing waits for calls inside, a second at
  // most. OUT_OF_HOST_MEMORY when nothing more can be registered. Any thread.
  static Status CloseBeforeDestructors();

  // One call into a library, made while this object lives. Once the gate is closed, the constructor parks its thread
  // for the rest of the process; only the thread that runs exit() goes on, with open() false: it must not make the
  // call.
  class Call {
   public:
    Call();
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    bool open() const { return open_; }

   private:
    bool open_;
  };
};

// The function pointers of a library's table, each through the gate. `Library` has `static const Table* raw()`.
// A call that is refused gives `refused`.
template <class Library, auto member, auto refused>
struct Gated;

template <class Library, class Table, class Result, class... Arguments, Result (*Table::*member)(Arguments...),
          auto refused>
struct Gated<Library, member, refused> {
  static Result Function(Arguments... arguments) {
    ExitGate::Call call;
    if (!call.open()) return static_cast<Result>(refused);
    return (Library::raw()->*member)(arguments...);
  }
};

}  // namespace fst
