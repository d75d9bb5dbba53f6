// Keeps threads out of shared libraries that exit() is taking down. Nothing of ours is joined at exit, so a thread may
// call into a library while its static objects are being destroyed: a crash in place of the exit code.
#pragma once
#include "base/status.h"

namespace fst {

class ExitGate {
 public:
  // Call it after each dlopen of a library that threads of ours call, and again after each function by which such a
  // library sets itself up (cuInit registers nine handlers): exit() runs what was registered last first, so the gate is
  // closed before the library begins to go. Closing waits for calls inside, a second at most. OUT_OF_HOST_MEMORY when
  // nothing more can be registered. Any thread.
  static Status CloseBeforeDestructors();

  // `give_back` is called once, when exit() has begun and before the gate closes, on the thread of exit(): for what a
  // library wants back. It may wait, a second at most. One function a process. Any thread.
  static void BeforeClosing(void (*give_back)());

  // One call into a library, made while this object lives. Once the gate is closed, the constructor parks its thread
  // for the rest of the process, with whatever it holds: nothing that runs within exit() may wait for it. Only the
  // thread that runs exit() goes on, with open() false: it must not make the call.
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

// A function pointer of a library's table, called through the gate. `Refused` converts to what a call gives that the
// gate refuses; errno stays as the function left it.
template <class Pointer, class Refused>
struct Gated;

template <class Result, class... Arguments, class Refused>
struct Gated<Result (*)(Arguments...), Refused> {
  using Pointer = Result (*)(Arguments...);
  Pointer pointer = nullptr;

  Result operator()(Arguments... arguments) const {
    ExitGate::Call call;
    return call.open() ? pointer(arguments...) : static_cast<Result>(Refused());
  }
};

}  // namespace fst
