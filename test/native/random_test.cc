// Secrets of the process.
#include "base/random.h"

#include <gtest/gtest.h>

#include <set>

#include "base/fd_reserve.h"

namespace fst {
namespace {

TEST(RandomSecret, IsAnotherOneEachTime) {
  std::set<uint64_t> secrets;
  for (int i = 0; i < 1000; ++i) secrets.insert(RandomSecret());
  EXPECT_EQ(secrets.size(), 1000u);
}

TEST(RandomSecret, TakesNoDescriptor) {
  FdReserve all(1 << 20);
  all.Take();
  EXPECT_NE(RandomSecret(), RandomSecret());
}

}  // namespace
}  // namespace fst
