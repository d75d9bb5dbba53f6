// Descriptors that are held for a moment only: who finds none left waits for these.
#pragma once
#include <cstdint>
#include <functional>

#include "base/status.h"

namespace fst {

// One such descriptor. Counts as held from its opening until this object goes, which must be after it was closed.
class FdTurn {
 public:
  FdTurn() = default;
  ~FdTurn();
  FdTurn(const FdTurn&) = delete;
  FdTurn& operator=(const FdTurn&) = delete;

  // Calls `open`, and again each time another turn has ended, while that fails for want of descriptors. Its last
  // failure is returned when nobody holds a turn, or none has ended for a second. Any thread; once.
  Status Open(const std::function<Status()>& open);

 private:
  bool held_ = false;
};

}  // namespace fst
