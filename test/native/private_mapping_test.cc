// Pages of a private mapping that are exchanged for this process's own: the same bytes at the same addresses, whatever
// becomes of the file, and no write of this process is lost.
#include "base/private_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/mapped_pages.h"
#include "support/temp_folder.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

namespace fst {
namespace {

class PrivateMappingTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!PopulatesMappings()) GTEST_SKIP() << "this kernel has no MADV_POPULATE_READ (Linux 5.14)";
  }

  std::unique_ptr<PrivateMapping> Map(size_t bytes) {
    bytes_.resize(bytes);
    for (size_t i = 0; i < bytes; ++i) bytes_[i] = static_cast<char>(i * 2654435761U >> 24);
    std::ofstream(path_, std::ios::binary) << bytes_;
    UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    std::unique_ptr<PrivateMapping> mapping;
    EXPECT_EQ(PrivateMapping::Create(fd.get(), {0, bytes}, &mapping), 0);
    return mapping;
  }

  static int Detach(const PrivateMapping& mapping, std::vector<PrivateMapping::Range> ranges) {
    return mapping.Detach(&ranges);
  }

  bool Same(const PrivateMapping& mapping, PrivateMapping::Range range) {
    return memcmp(mapping.At(range.first), bytes_.data() + range.first, range.second - range.first) == 0;
  }

  TempFolder folder_{GetParam()};
  const std::string path_ = folder_.Path("file");
  std::string bytes_;
};

INSTANTIATE_TEST_SUITE_P(Folders, PrivateMappingTest, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& info) { return std::string(info.param) == "/tmp" ? "disk" : "memory"; });

constexpr size_t kMapped = (70 << 20) + 123;

TEST_P(PrivateMappingTest, DetachedPagesSurviveTheirFile) {
  auto mapping = Map(kMapped);
  ASSERT_EQ(mapping->Populate({0, kMapped}), 0);
  ASSERT_EQ(Detach(*mapping, {{0, kMapped}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kMapped}));
  std::ofstream(path_, std::ios::binary) << std::string(kMapped, 'x');
  EXPECT_TRUE(Same(*mapping, {0, kMapped}));
}

TEST_P(PrivateMappingTest, OnlyThePagesOfTheRangeAreMapped) {
  Map(1 << 20);
  UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  std::unique_ptr<PrivateMapping> mapping;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  ASSERT_EQ(PrivateMapping::Create(fd.get(), {3 * page + 5, 7 * page + 1}, &mapping), 0);
  EXPECT_EQ(mapping->pages(), PrivateMapping::Range(3 * page, 8 * page));
  EXPECT_EQ(mapping->Resident({3 * page, 8 * page}), 1);
  ASSERT_EQ(mapping->Populate({3 * page, 8 * page}), 0);
  EXPECT_TRUE(Same(*mapping, {3 * page, 8 * page}));
  ASSERT_EQ(Detach(*mapping, {{3 * page + 5, 7 * page + 1}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {3 * page, 8 * page}));
}

TEST_P(PrivateMappingTest, RangesThatTouchOneAnotherAreDetachedOnce) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(Detach(*mapping, {{5000, 6000}, {4096, 9000}, {100000, 100000}, {12287, 12289}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {4096, 16384}));
}

TEST_P(PrivateMappingTest, WhatWasWrittenIsKept) {
  auto mapping = Map(kMapped);
  bytes_[5] = *mapping->At(5) = 'a';
  bytes_[kMapped - 1] = *mapping->At(kMapped - 1) = 'z';
  ASSERT_EQ(Detach(*mapping, {{0, kMapped}}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kMapped}));
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
        __atomic_store_n(mapping->At(at), bytes_[at], __ATOMIC_RELAXED);
      }
    });
    const int failed = Detach(*mapping, {{0, kSmall}});
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
  auto mapping = Map(kMapped);
  const int before = mappings();
  ASSERT_EQ(Detach(*mapping, {{0, kMapped}}), 0);
  EXPECT_LT(mappings(), before + 20);
}

TEST_P(PrivateMappingTest, PagesAfterTheEndAreAnError) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(truncate(path_.c_str(), 4096), 0);
  EXPECT_EQ(mapping->Populate({0, 1 << 20}), EFAULT);
  EXPECT_EQ(Detach(*mapping, {{0, 1 << 20}}), EFAULT);
  EXPECT_EQ(mapping->Populate({0, 4096}), 0);
}

TEST_P(PrivateMappingTest, TheLastPageMayBeTheOneAfterTheEnd) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(truncate(path_.c_str(), (1 << 20) - 4096), 0);
  EXPECT_EQ(mapping->Populate({0, 1 << 20}), EFAULT);
  EXPECT_EQ(mapping->Populate({0, (1 << 20) - 4096}), 0);
}

TEST_P(PrivateMappingTest, APageAmongOthersThatIsNotInMemoryIsReadIn) {
  constexpr off_t kPage = 4096, kAbsent = 3 * kPage;  // none of the pages that tell of others
  constexpr size_t kSize = 8 << 20;
  Map(kSize);
  UniqueFd fd(open(path_.c_str(), O_RDWR | O_CLOEXEC | O_TRUNC));
  // One page at a time, so that one can leave the page cache without others.
  for (off_t at = 0; at < static_cast<off_t>(kSize); at += kPage)
    ASSERT_EQ(pwrite(fd.get(), bytes_.data() + at, kPage, at), kPage);
  ASSERT_EQ(fdatasync(fd.get()), 0);
  std::unique_ptr<PrivateMapping> mapping;
  ASSERT_EQ(PrivateMapping::Create(fd.get(), {0, kSize}, &mapping), 0);
  ASSERT_EQ(posix_fadvise(fd.get(), kAbsent, kPage, POSIX_FADV_DONTNEED), 0);
  const PrivateMapping::Range absent = {kAbsent, kAbsent + kPage};
  if (mapping->Resident(absent) > 0) GTEST_SKIP() << "no single page of this file system leaves the page cache";
  EXPECT_EQ(mapping->Resident({0, kSize}), 1) << "a page that tells of others is the absent one";
  ASSERT_EQ(mapping->Populate({0, kSize}), 0);
  EXPECT_EQ(mapping->Resident(absent), 1);
  EXPECT_TRUE(Same(*mapping, {0, kSize}));
}

TEST_P(PrivateMappingTest, OfAnotherUsersFileItIsNotKnownWhatIsInMemory) {
  auto known = Map(1 << 20);
  EXPECT_TRUE(known->AllResident({0, 1 << 20}));
  if (chown(path_.c_str(), 65534, 65534) != 0) GTEST_SKIP() << "only root can give a file to another user";
  UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  std::unique_ptr<PrivateMapping> unknown;
  ASSERT_EQ(PrivateMapping::Create(fd.get(), {0, 1 << 20}, &unknown), 0);
  EXPECT_FALSE(unknown->AllResident({0, 1 << 20}));
  EXPECT_EQ(unknown->Populate({0, 1 << 20}), 0);
  EXPECT_TRUE(Same(*unknown, {0, 1 << 20}));
}

TEST_P(PrivateMappingTest, PagesAroundOneThatIsGoneAreKept) {
  auto mapping = Map(kMapped);
  ASSERT_EQ(mapping->Populate({0, kMapped}), 0);
  ASSERT_EQ(truncate(path_.c_str(), 40 << 20), 0);
  std::vector<PrivateMapping::Range> ranges = {{0, kMapped}};
  EXPECT_EQ(mapping->Detach(&ranges), EFAULT);
  ASSERT_FALSE(ranges.empty());
  uint64_t gone = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_GE(begin, 40U << 20);
    gone += end - begin;
  }
  EXPECT_EQ(gone, (kMapped + 4095) / 4096 * 4096 - (40 << 20));
  std::ofstream(path_, std::ios::binary) << std::string(kMapped, 'x');
  EXPECT_TRUE(Same(*mapping, {0, 40 << 20}));
}

// A hole of pages that cannot be kept, in the midst of one piece of work.
TEST_P(PrivateMappingTest, OnlyPagesThatCannotBeKeptAreLeft) {
  auto mapping = Map(1 << 20);
  ASSERT_EQ(mapping->Populate({0, 1 << 20}), 0);
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  // Memory that may not be written to stands for pages that the kernel cannot bring in.
  ASSERT_EQ(mprotect(mapping->At(10 * page), page, PROT_NONE), 0);
  std::vector<PrivateMapping::Range> ranges = {{0, 1 << 20}};
  EXPECT_NE(mapping->Detach(&ranges), 0);
  const std::vector<PrivateMapping::Range> left = {{10 * page, 11 * page}};
  EXPECT_EQ(ranges, left);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, 10 * page}));
  EXPECT_TRUE(Same(*mapping, {11 * page, 1 << 20}));
}

// While it lives this process may have only so much more address space.
class LittleMemory {
 public:
  explicit LittleMemory(size_t more) {
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    EXPECT_EQ(getrlimit(RLIMIT_AS, &before_), 0);
    rlimit little = before_;
    little.rlim_cur = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) + more;
    EXPECT_EQ(setrlimit(RLIMIT_AS, &little), 0);
  }
  ~LittleMemory() { setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_;
};

TEST_P(PrivateMappingTest, WhatThereWasNoMemoryForIsKeptLater) {
  if (SANITIZED) GTEST_SKIP() << "sanitizers need address space of their own";
  auto mapping = Map(kMapped);
  std::vector<PrivateMapping::Range> ranges = {{0, kMapped}};
  int error = 0;
  {
    LittleMemory none(0);
    error = mapping->Detach(&ranges);
  }
  EXPECT_EQ(error, ENOMEM);
  ASSERT_EQ(mapping->Detach(&ranges), 0);
  EXPECT_TRUE(ranges.empty());
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kMapped}));
}

TEST_P(PrivateMappingTest, LittleAddressSpaceIsEnough) {
  if (SANITIZED) GTEST_SKIP() << "sanitizers need address space of their own";
  auto mapping = Map(kMapped);
  std::vector<PrivateMapping::Range> ranges = {{0, kMapped}};
  int error = 0;
  {
    LittleMemory little(8 << 20);
    error = mapping->Detach(&ranges);
  }
  ASSERT_EQ(error, 0);
  ASSERT_EQ(truncate(path_.c_str(), 0), 0);
  EXPECT_TRUE(Same(*mapping, {0, kMapped}));
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
