// The table of descriptors grows once, ahead of those that come.
#include "base/fd_table.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "base/metrics.h"

namespace fst {
namespace {

size_t TableSize() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("FDSize:", 0) == 0) return std::stoul(line.substr(7));
  return 0;
}

TEST(FdTableTest, HasRoomForWhatIsComing) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const auto count = static_cast<size_t>(std::min<rlim_t>(limit.rlim_cur, 4 * TableSize()));
  const auto files = Metrics::Get().open_files.load();
  GrowFdTable(count);
  EXPECT_GE(TableSize(), count);
  EXPECT_EQ(Metrics::Get().open_files.load(), files);
}

TEST(FdTableTest, StaysWithinTheLimit) {
  rlimit limit, low;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  low = limit;
  low.rlim_cur = std::min<rlim_t>(limit.rlim_cur, 8 * TableSize());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  GrowFdTable(size_t{1} << 30);
  EXPECT_GE(TableSize(), low.rlim_cur);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

}  // namespace
}  // namespace fst
