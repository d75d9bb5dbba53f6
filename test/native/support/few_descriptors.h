// A process with few descriptors left.
#pragma once
#include <gtest/gtest.h>
#include <sys/resource.h>

namespace fst {

// Lowers the soft limit of open files while it lives.
class SoftLimit {
 public:
  explicit SoftLimit(rlim_t files) {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    rlimit low = {files, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  }
  ~SoftLimit() { EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_;
};

}  // namespace fst
