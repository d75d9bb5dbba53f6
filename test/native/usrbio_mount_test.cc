// What a process holds of a 3FS mount.
#include "reader/usrbio/usrbio_mount.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>

namespace fst::usrbio {
namespace {

bool LeaveMounts() {
  return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

bool MayMount() {
  pid_t child = fork();
  if (child == 0) _exit(LeaveMounts() ? 0 : 1);
  int status = 1;
  return waitpid(child, &status, 0) == child && status == 0;
}

// A file system of its own with a folder of links.
void MountOn(const std::string& folder) {
  ASSERT_EQ(mount("tmpfs", folder.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_TRUE(std::filesystem::create_directories(folder + "/3fs-virt/iovs"));
}

// Descriptors of the folder of links as it is now.
int Held(const std::string& folder) {
  struct stat now;
  EXPECT_EQ(stat((folder + "/3fs-virt/iovs").c_str(), &now), 0);
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    struct stat st;
    if (fstat(std::stoi(entry.path().filename()), &st) != 0) continue;
    count += st.st_dev == now.st_dev && st.st_ino == now.st_ino;
  }
  return count;
}

TEST(UsrbioMount, FolderOfLinksIsHeldOfTheMountThatLinksWereMadeOn) {
  if (!MayMount()) GTEST_SKIP() << "no right to mount";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::string folder = ::testing::TempDir() + "/fst-mount-XXXXXX";
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  // In a process of its own, whose mounts go with it.
  EXPECT_EXIT(
      {
        ASSERT_TRUE(LeaveMounts());
        MountOn(folder);
        ASSERT_TRUE(OnMountThread(folder, [&] { return HoldLinkFolder(folder), Status::Ok(); }).ok());
        EXPECT_EQ(Held(folder), 1);
        ASSERT_TRUE(OnMountThread(folder, [&] {
                      HoldLinkFolder(folder);
                      MountOn(folder);  // the daemon was started again, and links are made
                      return Status::Ok();
                    }).ok());
        EXPECT_EQ(Held(folder), 1) << "of the new mount";
        _exit(::testing::Test::HasFailure() ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
  rmdir(folder.c_str());
}

}  // namespace
}  // namespace fst::usrbio
