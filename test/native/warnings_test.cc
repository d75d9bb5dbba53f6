#include "base/warnings.h"

#include <gtest/gtest.h>

namespace fst {
namespace {

TEST(Warnings, AreTakenOnce) {
  TakeWarnings();
  Warn("one");
  Warn("two");
  Warn("one");
  EXPECT_EQ(TakeWarnings(), (std::vector<std::string>{"one", "two"}));
  Warn("two");
  EXPECT_EQ(TakeWarnings(), std::vector<std::string>());
}

}  // namespace
}  // namespace fst
