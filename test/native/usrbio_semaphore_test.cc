// Semaphores of daemons: each is mapped once, and unmapped when neither its daemon nor a ring of it is there any more.
#include "reader/usrbio/usrbio_semaphore.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "support/temp_folder.h"

namespace fst::usrbio {
namespace {

class UsrbioSemaphoreTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(mount_ + "/3fs-virt/iovs"); }
  void TearDown() override {
    for (const std::string& name : names_) sem_unlink(name.c_str());
  }

  // A daemon comes: another semaphore under another name.
  std::string NewDaemon() {
    const std::string name = "/hf3fs-submit-ios.test-" + std::to_string(getpid()) + "-" + std::to_string(++daemons_);
    sem_t* daemons = sem_open(name.c_str(), O_CREAT, 0600, 0);
    EXPECT_NE(daemons, SEM_FAILED);
    sem_close(daemons);  // it is another process's
    names_.push_back(name);
    const std::string link = mount_ + "/3fs-virt/iovs/submit-ios";
    unlink(link.c_str());
    EXPECT_EQ(symlink(("/dev/shm/sem." + name.substr(1)).c_str(), link.c_str()), 0);
    return name;
  }
  // As the library does for a ring.
  static std::shared_ptr<SubmitSemaphore> NewRing(const std::string& mount, const std::string& name) {
    std::shared_ptr<SubmitSemaphore> semaphore = SubmitSemaphore::Of(mount);
    EXPECT_NE(semaphore, nullptr);
    EXPECT_NE(sem_open(name.c_str(), 0), SEM_FAILED);
    semaphore->CountOpening();
    return semaphore;
  }
  static int Mappings(const std::string& name) {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) count += line.find("sem." + name.substr(1)) != std::string::npos;
    return count;
  }

  TempFolder folder_;
  const std::string mount_ = folder_.Path("mount");
  int daemons_ = 0;
  std::vector<std::string> names_;
};

TEST_F(UsrbioSemaphoreTest, GoesWithItsDaemonAndTheLastRing) {
  std::string before;
  std::shared_ptr<SubmitSemaphore> old_ring;
  for (int daemon = 0; daemon < 5; ++daemon) {
    const std::string name = NewDaemon();
    std::shared_ptr<SubmitSemaphore> one = NewRing(mount_, name), other = NewRing(mount_, name);
    EXPECT_EQ(one, other);
    EXPECT_EQ(Mappings(name), 1);
    if (old_ring != nullptr) {
      EXPECT_EQ(Mappings(before), 1) << "a ring of it is left";
    }
    old_ring = one;
    one.reset();
    if (!before.empty()) {
      EXPECT_EQ(Mappings(before), 0);
    }
    before = name;
  }
  EXPECT_EQ(Mappings(before), 1) << "the next ring is for the same daemon";
  NewRing(mount_, NewDaemon());
  EXPECT_EQ(Mappings(before), 1);
  old_ring.reset();
  EXPECT_EQ(Mappings(before), 0);
}

TEST_F(UsrbioSemaphoreTest, IsNoneWhereTheDaemonDoesNotTell) {
  EXPECT_EQ(SubmitSemaphore::Of(mount_), nullptr);
  ASSERT_EQ(symlink("/etc/passwd", (mount_ + "/3fs-virt/iovs/submit-ios").c_str()), 0);
  EXPECT_EQ(SubmitSemaphore::Of(mount_), nullptr);
  NewDaemon();
  TearDown();
  EXPECT_EQ(SubmitSemaphore::Of(mount_), nullptr) << "its memory is not in this /dev/shm";
}

}  // namespace
}  // namespace fst::usrbio
