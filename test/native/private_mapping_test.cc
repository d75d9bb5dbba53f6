// Pages of a private mapping that are exchanged for this process's own: the same bytes at the same addresses, whatever
// becomes of the file, and no write of this process is lost.
#include "base/private_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

class PrivateMappingTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!PrivateMapping::Supported()) GTEST_SKIP() << "this kernel has no MADV_POPULATE_READ (Linux 5.14)";
  }

  std::unique_ptr<PrivateMapping> Map(size_t bytes) {
    bytes_.resize(bytes);
    for (size_t i = 0; i < bytes; ++i) bytes_[i] = static_cast<char>(i * 2654435761U >> 24);
    std::ofstream(path_, std::ios::binary) << bytes_;
    UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    std::unique_ptr<PrivateMapping> mapping;
    EXPECT_EQ(PrivateMapping::Create(fd.get(), bytes, &mapping), 0);
    return mapping;
  }

  bool Same(const PrivateMapping& mapping, PrivateMapping::Range range) {
    return memcmp(mapping.address() + range.first, bytes_.data() + range.first, range.second - range.first) == 0;
  }

  TempFolder folder_{GetParam()};
  const std::string path_ = folder_.Path("file");
  std::string bytes_;
};

INSTANTIATE_TEST_SUITE_P(Folders, PrivateMappingTest, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& info) { return std::string(info.param) == "/tmp" ? "disk" : "memory"; });

constexpr size_t kBytes = (70 << 20) + 123;

TEST_P(PrivateMappingTest, DetachedPagesSurviveTheirFile) {
  auto mapping = Map(kBytes);
  ASSERT_EQ(mapping->Populate({0, kBytes}), 0);
  ASSERT_EQ(mapping->Detach({{0, kBytes}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kBytes}));
  std::ofstream(path_, std::ios::binary) << std::string(kBytes, 'x');
  EXPECT_TRUE(Same(*mapping, {0, kBytes}));
}

TEST_P(PrivateMappingTest, RangesThatTouchOneAnotherAreDetachedOnce) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(mapping->Detach({{5000, 6000}, {4096, 9000}, {100000, 100000}, {12287, 12289}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {4096, 16384}));
}

TEST_P(PrivateMappingTest, WhatWasWrittenIsKept) {
  auto mapping = Map(kBytes);
  bytes_[5] = mapping->address()[5] = 'a';
  bytes_[kBytes - 1] = mapping->address()[kBytes - 1] = 'z';
  ASSERT_EQ(mapping->Detach({{0, kBytes}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kBytes}));
}

TEST_P(PrivateMappingTest, WhatIsWrittenMeanwhileIsKept) {
  constexpr size_t kSmall = 8 << 20;
  for (int round = 0; round < 20; ++round) {
    auto mapping = Map(kSmall);
    std::atomic<bool> done{false};
    size_t writes = 0;
    std::thread writer([&] {
      for (size_t at = 0; !done || writes == 0; at = (at + 40961) % kSmall, ++writes) {
        bytes_[at] = static_cast<char>(bytes_[at] + 1);
        __atomic_store_n(&mapping->address()[at], bytes_[at], __ATOMIC_RELAXED);
      }
    });
    const int failed = mapping->Detach({{0, kSmall}});
    done = true;
    writer.join();
    ASSERT_EQ(failed, 0);
    ASSERT_TRUE(Same(*mapping, {0, kSmall})) << "round " << round << ", " << writes << " writes";
  }
}

TEST_P(PrivateMappingTest, DetachedPagesAreFewMappings) {
  auto mappings = [] {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) ++count;
    return count;
  };
  auto mapping = Map(kBytes);
  const int before = mappings();
  ASSERT_EQ(mapping->Detach({{0, kBytes}}), 0);
  EXPECT_LT(mappings(), before + 20);
}

TEST_P(PrivateMappingTest, PagesAfterTheEndAreAnError) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(truncate(path_.c_str(), 4096), 0);
  EXPECT_EQ(mapping->Populate({0, 1 << 20}), EFAULT);
  EXPECT_EQ(mapping->Detach({{0, 1 << 20}}), EFAULT);
  EXPECT_EQ(mapping->Populate({0, 4096}), 0);
}

TEST_P(PrivateMappingTest, ResidentSamplesTheRange) {
  auto mapping = Map(8 << 20);
  EXPECT_EQ(mapping->Resident({0, 8 << 20}), 1);
  if (std::string(GetParam()) != "/tmp") return;
  UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(fdatasync(fd.get()), 0);
  ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  EXPECT_LT(mapping->Resident({0, 8 << 20}), 0.2);
  EXPECT_EQ(mapping->Populate({0, 8 << 20}), 0);
  EXPECT_EQ(mapping->Resident({0, 8 << 20}), 1);
}

}  // namespace
}  // namespace fst
