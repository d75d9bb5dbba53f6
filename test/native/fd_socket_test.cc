// A descriptor that goes to other processes over a socket.
#include "base/fd_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "support/temp_folder.h"

namespace fst {
namespace {

class FdSocketTest : public ::testing::Test {
 protected:
  void SetUp() override { before_ = Metrics::Get().open_files; }
  void TearDown() override {
    // The thread of a server ends by itself.
    for (int i = 0; i < 2000 && Metrics::Get().open_files != before_; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(Metrics::Get().open_files, before_);
  }
  static UniqueFd File(const std::string& text) {
    UniqueFd fd(memfd_create("given", MFD_CLOEXEC));
    EXPECT_EQ(write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    return fd;
  }
  std::unique_ptr<FdServer> Served(const std::string& given = "given", const std::string& text = "a text") {
    std::unique_ptr<FdServer> server;
    Status listens = FdServer::Listen(path_, File(given), text, &server);
    EXPECT_TRUE(listens.ok()) << listens.message();
    return server;
  }
  Code Receive(std::string* text = nullptr, std::string* given = nullptr, size_t most = 1 << 20) {
    UniqueFd fd;
    std::string own;
    Status received = ReceiveFd(path_, most, &fd, text != nullptr ? text : &own);
    if (received.ok() && given != nullptr) {
      given->resize(100);
      given->resize(static_cast<size_t>(pread(fd.get(), given->data(), given->size(), 0)));
    }
    return received.code();
  }

  TempFolder folder_{"/tmp"};
  const std::string path_ = folder_.Path("socket");
  int64_t before_ = 0;
};

TEST_F(FdSocketTest, GivesTheDescriptorAndTheTextToEachWhoConnects) {
  const std::string long_text(5 << 20, 't');
  auto server = Served("what is given", long_text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      std::string text, given;
      EXPECT_EQ(Receive(&text, &given, 6 << 20), Code::kOk);
      EXPECT_EQ(text, long_text);
      EXPECT_EQ(given, "what is given");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(FdSocketTest, OneOfSeveralThatStartAtOnceWhereAServerDied) {
  sockaddr_un address = {AF_UNIX, {}};
  memcpy(address.sun_path, path_.c_str(), path_.size());
  for (int round = 0; round < 100; ++round) {
    UniqueFd dead(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    dead = UniqueFd();
    std::atomic<int> ready{0};
    std::unique_ptr<FdServer> servers[4];
    std::vector<std::thread> threads;
    for (auto& server : servers) {
      threads.emplace_back([&] {
        ++ready;
        while (ready < 4) {
        }
        const Code code = FdServer::Listen(path_, File("given"), "a text", &server).code();
        EXPECT_EQ(code, server != nullptr ? Code::kOk : Code::INVALID_ARGUMENT);
      });
    }
    for (std::thread& thread : threads) thread.join();
    int listening = 0;
    for (const auto& server : servers) listening += server != nullptr ? 1 : 0;
    ASSERT_EQ(listening, 1) << "round " << round;
    EXPECT_EQ(Receive(), Code::kOk);
  }
}

TEST_F(FdSocketTest, OnlyThisUserMayConnect) {
  auto server = Served();
  struct stat made;
  ASSERT_EQ(stat(path_.c_str(), &made), 0);
  EXPECT_EQ(made.st_mode & 0777, 0600U);
}

TEST_F(FdSocketTest, NobodyReceivesAfterItWasClosed) {
  auto server = Served();
  server.reset();
  struct stat found;
  EXPECT_NE(stat(path_.c_str(), &found), 0);
  EXPECT_EQ(Receive(), Code::IO_ERROR);
}

TEST_F(FdSocketTest, LeavesAlonePathsThatAreTakenAndReplacesDeadSockets) {
  auto server = Served("first");
  std::unique_ptr<FdServer> second;
  EXPECT_EQ(FdServer::Listen(path_, File("second"), "", &second).code(), Code::INVALID_ARGUMENT);
  std::string given;
  EXPECT_EQ(Receive(nullptr, &given), Code::kOk);
  EXPECT_EQ(given, "first");
  server.reset();
  UniqueFd file(open(path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT_EQ(FdServer::Listen(path_, File("second"), "", &second).code(), Code::INVALID_ARGUMENT);
  unlink(path_.c_str());
  {
    // Of a process that was killed.
    UniqueFd dead(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path_.data(), path_.size());
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  EXPECT_EQ(Receive(), Code::IO_ERROR);
  server = Served("third");
  EXPECT_EQ(Receive(nullptr, &given), Code::kOk);
  EXPECT_EQ(given, "third");
}

TEST_F(FdSocketTest, RemovesNoFileThatTookItsPlace) {
  auto server = Served();
  unlink(path_.c_str());
  UniqueFd file(open(path_.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  server.reset();
  struct stat found;
  EXPECT_EQ(stat(path_.c_str(), &found), 0);
}

TEST_F(FdSocketTest, RefusesStrangers) {
  EXPECT_EQ(Receive(nullptr, nullptr), Code::IO_ERROR);  // nobody is there
  UniqueFd fd;
  std::string text;
  EXPECT_EQ(ReceiveFd(std::string(108, 'x'), 10, &fd, &text).code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(ReceiveFd("", 10, &fd, &text).code(), Code::INVALID_ARGUMENT);
  {
    auto server = Served("given", std::string(11, 't'));
    EXPECT_EQ(Receive(nullptr, nullptr, 10), Code::INVALID_ARGUMENT);
  }
  // One that sends bytes and no descriptors, and one that hangs up.
  for (const std::string& sent : {std::string("F"), std::string()}) {
    UniqueFd listening(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path_.data(), path_.size());
    ASSERT_EQ(bind(listening.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(listen(listening.get(), 1), 0);
    std::thread stranger([&] {
      UniqueFd client(accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
      (void)!send(client.get(), sent.data(), sent.size(), MSG_NOSIGNAL);
    });
    EXPECT_EQ(Receive(), Code::INVALID_ARGUMENT);
    stranger.join();
    unlink(path_.c_str());
  }
}

TEST_F(FdSocketTest, ClientsThatAskNothingHoldNobodyUp) {
  auto server = Served();
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 50; ++i) {
    idle.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path_.data(), path_.size());
    ASSERT_EQ(connect(idle.back().get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  EXPECT_EQ(Receive(), Code::kOk);
}

}  // namespace
}  // namespace fst
