#include "reader/usrbio/mount_point.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace fst {
namespace {

namespace fs = std::filesystem;

class MountPointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
    std::string name = ::testing::TempDir() + "/fst-mount-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder = fs::canonical(name).string();
    fs::create_directories(folder + "/m/3fs-virt");
    fs::create_directories(folder + "/m/models");
    info = Line("/", "ext4") + Line(folder + "/m", "fuse.hf3fs");
  }
  void TearDown() override {
    unsetenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
    fs::remove_all(folder);
  }
  static std::string Line(const std::string& point, const std::string& type, const std::string& device = "98:0") {
    return "36 35 " + device + " / " + point + " rw,noatime shared:1 master:2 - " + type + " source rw,user_id=0\n";
  }
  // The mount point, or the error's code and message.
  std::string Extract(const std::string& path) { return Extract(path, &info); }
  static std::string Extract(const std::string& path, const std::string* mountinfo) {
    std::string out;
    const std::vector<Mount> mounts = mountinfo == nullptr ? CurrentMounts() : ParseMountinfo(*mountinfo);
    Status status = ExtractMountPoint(path, &out, &mounts);
    return status.ok() ? out : CodeName(status.code()) + (": " + status.message());
  }
  static void ExpectStarts(const std::string& text, const std::string& start) {
    EXPECT_EQ(text.substr(0, start.size()), start);
  }
  static void ExpectHas(const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" in: " << text;
  }

  std::string folder, info;
};

TEST_F(MountPointTest, FindsTheMountOfFilesFoldersAndTheMountItself) {
  std::string m = folder + "/m";
  EXPECT_EQ(Extract(m), m);
  EXPECT_EQ(Extract(m + "/"), m);
  EXPECT_EQ(Extract(m + "/models"), m);
  EXPECT_EQ(Extract(m + "/models/absent/x.safetensors"), m);
  EXPECT_EQ(Extract(m + "/absent/../models"), m);
  EXPECT_EQ(Extract(folder + "/absent/../m/models"), m);
}

TEST_F(MountPointTest, FollowsSymlinksIntoAndOutOfTheMount) {
  fs::create_symlink(folder + "/m/models", folder + "/link");
  fs::create_symlink("/etc", folder + "/m/outside");
  EXPECT_EQ(Extract(folder + "/link/absent"), folder + "/m");
  ExpectStarts(Extract(folder + "/m/outside/passwd"), "NOT_3FS");
}

TEST_F(MountPointTest, ResolvesRelativePaths) {
  fs::path before = fs::current_path();
  fs::current_path(folder + "/m/models");
  EXPECT_EQ(Extract("x.safetensors"), folder + "/m");
  EXPECT_EQ(Extract(".."), folder + "/m");
  fs::current_path(before);
}

TEST_F(MountPointTest, NamesPathTypeAndMountOfWhatIsNot3fs) {
  std::string text = Extract(folder + "/x.safetensors");
  ExpectStarts(text, "NOT_3FS: " + folder + "/x.safetensors: expected a path on a 3FS mount");
  ExpectHas(text, "found ext4 on /;");
}

TEST_F(MountPointTest, ANeighbourWithTheSamePrefixIsNotInside) {
  fs::create_directories(folder + "/m2");
  ExpectStarts(Extract(folder + "/m2/x"), "NOT_3FS");
}

TEST_F(MountPointTest, TheLongestMountWinsAndOfTwoOnOneFolderTheLater) {
  fs::create_directories(folder + "/m/models/inner/3fs-virt");
  info += Line(folder + "/m/models/inner", "fuse.hf3fs") + Line(folder + "/m/tmp", "tmpfs");
  EXPECT_EQ(Extract(folder + "/m/models/inner/x"), folder + "/m/models/inner");
  EXPECT_EQ(Extract(folder + "/m/models/x"), folder + "/m");
  ExpectHas(Extract(folder + "/m/tmp/x"), "tmpfs on " + folder + "/m/tmp");
  info += Line(folder + "/m", "nfs4");
  ExpectHas(Extract(folder + "/m/models/x"), "nfs4 on " + folder + "/m");
}

TEST_F(MountPointTest, DecodesOctalEscapes) {
  fs::create_directories(folder + "/a b\\\tc/3fs-virt");
  info += Line(folder + "/a\\040b\\134\\011c", "fuse.hf3fs");
  EXPECT_EQ(Extract(folder + "/a b\\\tc/x"), folder + "/a b\\\tc");
}

TEST_F(MountPointTest, A3fsMountNeedsItsVirtualFolder) {
  fs::remove(folder + "/m/3fs-virt");
  std::string text = Extract(folder + "/m/x");
  ExpectStarts(text, "NOT_3FS");
  ExpectHas(text, "fuse.hf3fs on " + folder + "/m without a folder 3fs-virt");
}

TEST_F(MountPointTest, FoldersMountedOneByOneBelongToTheParentOfTheVirtualOne) {
  fs::create_directories(folder + "/parts/3fs-virt");
  fs::create_directories(folder + "/parts/models");
  info += Line(folder + "/parts/3fs-virt", "fuse.hf3fs") + Line(folder + "/parts/models", "fuse.hf3fs");
  EXPECT_EQ(Extract(folder + "/parts/models/x"), folder + "/parts");
  ExpectStarts(Extract(folder + "/parts/else"), "NOT_3FS");
}

TEST_F(MountPointTest, AFolderMountedElsewhereBelongsToTheWholeMountOfItsFileSystem) {
  fs::create_directories(folder + "/bound/models");
  fs::create_directories(folder + "/other/3fs-virt");
  std::string before = info + Line(folder + "/other", "fuse.hf3fs", "0:46");
  info = before + Line(folder + "/bound", "fuse.hf3fs");
  EXPECT_EQ(Extract(folder + "/bound/models/x"), folder + "/m");
  info = before + Line(folder + "/bound", "fuse.hf3fs", "0:46");
  EXPECT_EQ(Extract(folder + "/bound/models/x"), folder + "/other");
  info = before + Line(folder + "/bound", "fuse.hf3fs", "0:47");
  ExpectStarts(Extract(folder + "/bound/models/x"), "NOT_3FS");
  info = before + Line(folder + "/bound", "ext4");
  ExpectStarts(Extract(folder + "/bound/models/x"), "NOT_3FS");
}

TEST_F(MountPointTest, TestModeTakesTheNearestFolderWithAVirtualOne) {
  info = Line("/", "ext4");
  ExpectStarts(Extract(folder + "/m/models/x"), "NOT_3FS");
  setenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP", "yes", 1);
  EXPECT_EQ(Extract(folder + "/m/models/x"), folder + "/m");
  EXPECT_EQ(Extract(folder + "/m"), folder + "/m");
  fs::create_directories(folder + "/m/models/3fs-virt");
  EXPECT_EQ(Extract(folder + "/m/models/x"), folder + "/m/models");
  ExpectStarts(Extract(folder + "/x"), "NOT_3FS");
  setenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP", "1", 1);
  ExpectStarts(Extract(folder + "/m/models/x"), "NOT_3FS");
}

TEST_F(MountPointTest, RefusesEmptyPathsAndNuls) {
  ExpectStarts(Extract(""), "INVALID_ARGUMENT");
  ExpectStarts(Extract(std::string("/a\0b", 4)), "INVALID_ARGUMENT");
}

TEST_F(MountPointTest, SurvivesGarbledMountinfo) {
  info = "\n36 35\n36 35 98:0 / /x rw shared:1\n- - - - - - -\n" + info;
  EXPECT_EQ(Extract(folder + "/m/x"), folder + "/m");
  info = "";
  ExpectStarts(Extract(folder + "/m/x"), "IO_ERROR");
}

TEST_F(MountPointTest, ReadsTheSystemsOwnMounts) {
  ExpectHas(Extract("/proc/self/absent", nullptr), "found proc on /proc");
}

}  // namespace
}  // namespace fst
