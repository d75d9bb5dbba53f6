// Pages for a buffer that are allocated before its reader is made.
#include "reader/usrbio/usrbio_reservation.h"

#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "usrbio_reader_fixture.h"

namespace fst {
namespace {

using usrbio::ShmReservation;

class UsrbioReservationTest : public UsrbioReaderTest {};

struct stat StatOf(const UniqueFd& fd) {
  struct stat st = {};
  EXPECT_EQ(fstat(fd.get(), &st), 0);
  return st;
}

// Of the files without a name in /dev/shm that this process has open.
std::vector<std::string> Unnamed() {
  std::vector<std::string> inodes;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
    const std::string begin = "/dev/shm/#";
    if (target.compare(0, begin.size(), begin) == 0)
      inodes.push_back(target.substr(begin.size(), target.find(' ') - begin.size()));
  }
  return inodes;
}

TEST_F(UsrbioReservationTest, GivesAFileWhosePagesAreThere) {
  ShmReservation pages;
  pages.Fill(2 * kMi, -1);
  UniqueFd fd = pages.Take(2 * kMi, -1);
  ASSERT_TRUE(fd.valid());
  const struct stat st = StatOf(fd);
  EXPECT_EQ(st.st_size, static_cast<off_t>(2 * kMi));
  EXPECT_EQ(st.st_blocks * 512, static_cast<blkcnt_t>(2 * kMi));
  EXPECT_FALSE(pages.Take(2 * kMi, -1).valid()) << "it is given once";
}

TEST_F(UsrbioReservationTest, GivesNothingOfAnotherSizeOrNode) {
  for (bool size : {false, true}) {
    ShmReservation pages;
    pages.Fill(kMi, -1);
    EXPECT_FALSE(pages.Take(size ? 2 * kMi : kMi, size ? -1 : 0).valid());
    EXPECT_TRUE(Unnamed().empty());
  }
}

TEST_F(UsrbioReservationTest, WhatNobodyWillTakeIsNotAllocated) {
  ShmReservation dropped, taken;
  dropped.Drop();
  dropped.Fill(kMi, -1);
  EXPECT_FALSE(taken.Take(kMi, -1).valid());
  taken.Fill(kMi, -1);
  EXPECT_TRUE(Unnamed().empty());
}

TEST_F(UsrbioReservationTest, DropGivesBackAtAnyMoment) {
  for (int i = 0; i < 50; ++i) {
    auto pages = std::make_shared<ShmReservation>();
    std::thread filling([pages] { pages->Fill(8 * kMi, -1); });
    usleep(static_cast<useconds_t>(i * 40));
    if (i % 2 == 0) {
      pages->Drop();
    } else {
      (void)pages->Take(8 * kMi, -1);
    }
    EXPECT_TRUE(Unnamed().empty()) << "before Fill has returned";
    filling.join();
    EXPECT_TRUE(Unnamed().empty());
  }
}

TEST_F(UsrbioReservationTest, ReaderTakesThem) {
  const std::vector<Source> sources = {Write("a", {5 * kMi, 3})};
  UsrbioReaderOptions options;
  options.buffer_bytes = 3 * kMi;
  options.pages = std::make_shared<ShmReservation>();
  options.pages->Fill(UsrbioBufferBytes(options), -1);
  const std::vector<std::string> inodes = Unnamed();
  ASSERT_EQ(inodes.size(), 1u);
  Loader loader(this, options, "cpu");
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), {});
  EXPECT_NE(text.find(" " + inodes[0] + " "), std::string::npos);
  EXPECT_TRUE(Unnamed().empty());
}

TEST_F(UsrbioReservationTest, ReaderMakesItsOwnWhereTheyDoNotFit) {
  const std::vector<Source> sources = {Write("a", {5 * kMi, 3})};
  UsrbioReaderOptions options;
  options.pages = std::make_shared<ShmReservation>();
  options.pages->Fill(kMi, -1);
  Loader loader(this, options, "cpu");
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
  EXPECT_TRUE(Unnamed().empty());
}

}  // namespace
}  // namespace fst
