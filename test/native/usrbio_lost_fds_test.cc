// What the library keeps of files whose daemon died comes back as soon as another one is there.
#include "reader/usrbio/usrbio_lost_fds.h"

#include <sys/resource.h>

#include "usrbio_reader_fixture.h"

namespace fst {
namespace {

class UsrbioLostFdsTest : public UsrbioReaderTest {
 protected:
  // Opens this many files, whose daemon dies; their descriptors are lost.
  void Lose(int count) {
    usrbio::Files files(*api, mount);
    std::vector<std::shared_ptr<ReaderFile>> open;
    for (int i = 0; i < count; ++i) open.push_back(Open(files, i));
    Call<void(const char*)>("fst_emu_hf3fs_kill_daemon")(mount.c_str());
  }
  std::shared_ptr<ReaderFile> Open(usrbio::Files& files, int i) {
    const std::string path = WriteFile("small-" + std::to_string(i), 100);
    FileIdentity identity;
    EXPECT_TRUE(FileIdentity::OfPath(path, &identity));
    std::shared_ptr<ReaderFile> file;
    Status opened = files.Open(path, identity, &file);
    EXPECT_TRUE(opened.ok()) << opened.message();
    return file;
  }
  void Revive() { Call<void()>("fst_emu_hf3fs_revive")(); }
  static std::ptrdiff_t Descriptors() {
    std::filesystem::directory_iterator all("/proc/self/fd");
    return std::distance(begin(all), end(all));
  }
};

TEST_F(UsrbioLostFdsTest, ComeBackWithTheNextFileThatIsOpened) {
  const std::ptrdiff_t before = Descriptors();
  Lose(20);
  EXPECT_EQ(usrbio::LostFds(), 20u);
  EXPECT_EQ(Descriptors(), before + 40);
  Revive();
  usrbio::Files files(*api, mount);
  std::shared_ptr<ReaderFile> file = Open(files, 0);
  EXPECT_EQ(usrbio::LostFds(), 0u);
  EXPECT_EQ(Stat("fds"), 1u);
  EXPECT_EQ(Descriptors(), before + 2);
}

// They were closed on another thread, after the last file was opened.
TEST_F(UsrbioLostFdsTest, ComeBackWithAFileThatIsClosed) {
  const std::ptrdiff_t before = Descriptors();
  Lose(3);
  Revive();
  int live = open(WriteFile("live", 1).c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_LE(api->reg_fd(live, 0), 0);
  usrbio::CloseRegistered(*api, UniqueFd(live), 0);
  EXPECT_EQ(usrbio::LostFds(), 0u);
  EXPECT_EQ(Stat("fds"), 0u);
  EXPECT_EQ(Descriptors(), before);
}

TEST_F(UsrbioLostFdsTest, StayLostWhileNoDaemonAnswers) {
  const std::ptrdiff_t before = Descriptors();
  Lose(3);
  int dead = open(WriteFile("dead", 1).c_str(), O_RDONLY | O_CLOEXEC);
  usrbio::GiveBackLostFds(*api, dead);
  EXPECT_EQ(usrbio::LostFds(), 3u);
  Revive();
  usrbio::GiveBackLostFds(*api, dead);
  EXPECT_EQ(usrbio::LostFds(), 0u);
  EXPECT_EQ(Stat("fds"), 0u);
  close(dead);
  EXPECT_EQ(Descriptors(), before);
}

// Descriptors were few: the numbers went to others, and the library has the duplicates until a file gets such a number.
TEST_F(UsrbioLostFdsTest, ThatHadToBeClosedComeBackWithTheirNumbers) {
  const std::ptrdiff_t before = Descriptors();
  Lose(100);
  EXPECT_EQ(usrbio::LostFds(), 100u);
  while (usrbio::CloseOneLostFd()) {
  }
  EXPECT_EQ(usrbio::LostFds(), 0u);
  Revive();
  usrbio::Files files(*api, mount);
  std::vector<std::shared_ptr<ReaderFile>> open;
  for (int i = 0; i < 100; ++i) open.push_back(Open(files, i));
  EXPECT_EQ(Stat("fds"), 100u);
  EXPECT_EQ(Descriptors(), before + 200);
}

TEST_F(UsrbioLostFdsTest, MakeRoomWhereDescriptorsAreFew) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const std::string path = WriteFile("any", 1);
  FileIdentity identity;
  ASSERT_TRUE(FileIdentity::OfPath(path, &identity));
  for (size_t left : {0, 1}) {  // for the file and the library's duplicate
    Lose(20);
    Revive();
    usrbio::Files files(*api, mount);
    const rlimit few = {static_cast<rlim_t>(Descriptors()), limit.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    std::vector<UniqueFd> taken;
    for (UniqueFd fd; (fd = UniqueFd(open("/", O_RDONLY | O_CLOEXEC))).valid();) taken.push_back(std::move(fd));
    ASSERT_GE(taken.size(), left);
    taken.resize(taken.size() - left);
    std::shared_ptr<ReaderFile> file;
    Status opened = files.Open(path, identity, &file);
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    EXPECT_TRUE(opened.ok()) << left << ": " << opened.message();
    EXPECT_EQ(usrbio::LostFds(), 0u);
    EXPECT_EQ(Stat("fds"), 1u);
  }
}

}  // namespace
}  // namespace fst
