// Memory that other processes get: what they may not do with it, and what is not taken from them.
#include "device/sealed_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/devices.h"
#include "device/shared_buffers.h"

namespace fst {
namespace {

const std::string kSeal(32, 'a');
constexpr size_t kSize = 300000, kWhole = 300288 + 32;

class SealedMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(OpenDevice("cpu", false, &host_).ok());
    before_ = Held();
  }
  void TearDown() override {
    WaitForFrees();
    EXPECT_EQ(Held(), before_);
  }
  static int64_t Held() {
    const Metrics& metrics = Metrics::Get();
    return metrics.host_bytes + metrics.mapped_bytes + metrics.open_files;
  }

  std::shared_ptr<DeviceBuffer> Filled(char value) {
    std::shared_ptr<DeviceBuffer> buffer;
    EXPECT_TRUE(host_->Allocate(kSize, &buffer).ok());
    memset(At(*buffer), value, kSize);
    return buffer;
  }
  static char* At(const DeviceBuffer& buffer) { return reinterpret_cast<char*>(buffer.address()); }
  std::shared_ptr<ExportedMemory> Exported() {
    std::shared_ptr<ExportedMemory> memory;
    const std::vector<ExportPart> parts = {{Filled('x'), 100, 1000, 0}, {Filled('y'), 0, kSize, 1024}};
    Status made = host_->ExportMemory(parts, kWhole + 1024, kSeal, &memory);
    EXPECT_TRUE(made.ok()) << made.message();
    return memory;
  }
  Code Import(int fd, size_t size = kWhole + 1024, const std::string& seal = kSeal) {
    std::shared_ptr<DeviceBuffer> buffer;
    return host_->ImportMemory(fd, size, seal, &buffer).code();
  }
  // A memfd as a stranger may make it, of as many bytes as that of Exported.
  static UniqueFd Memfd(int seals, bool filled = true) {
    UniqueFd fd(memfd_create("stranger", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    std::string bytes(kWhole + 1024, 'a');
    if (!filled) EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes.size())), 0);
    const size_t written = filled ? bytes.size() : kSeal.size();
    EXPECT_EQ(pwrite(fd.get(), bytes.data(), written, static_cast<off_t>(bytes.size() - written)),
              static_cast<ssize_t>(written));
    EXPECT_EQ(fcntl(fd.get(), F_ADD_SEALS, seals), 0);
    return fd;
  }

  std::shared_ptr<Device> host_;
  int64_t before_ = 0;
};

constexpr int kAll = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

TEST_F(SealedMemoryTest, HasTheBytesAndOutlivesItsDescriptor) {
  auto memory = Exported();
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(host_->ImportMemory(memory->fd(), kWhole + 1024, kSeal, &buffer).ok());
  memory.reset();
  EXPECT_EQ(std::string(At(*buffer), 1000), std::string(1000, 'x'));
  EXPECT_EQ(std::string(At(*buffer) + 1024, kSize), std::string(kSize, 'y'));
}

TEST_F(SealedMemoryTest, NobodyCanChangeIt) {
  auto memory = Exported();
  const int fd = memory->fd();
  EXPECT_LT(pwrite(fd, "z", 1, 0), 0);
  EXPECT_LT(ftruncate(fd, 0), 0);
  EXPECT_LT(ftruncate(fd, kWhole * 2), 0);
  EXPECT_LT(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_LT(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
}

TEST_F(SealedMemoryTest, WhatOneWritesIsItsOwn) {
  auto memory = Exported();
  std::shared_ptr<DeviceBuffer> one, other;
  ASSERT_TRUE(host_->ImportMemory(memory->fd(), kWhole + 1024, kSeal, &one).ok());
  memset(At(*one), 'z', one->size());
  ASSERT_TRUE(host_->ImportMemory(memory->fd(), kWhole + 1024, kSeal, &other).ok());
  EXPECT_EQ(std::string(At(*other), 1000), std::string(1000, 'x'));
}

TEST_F(SealedMemoryTest, TakesNothingButSealedMemfdsOfTheSizeAndSealThatAreSaid) {
  auto memory = Exported();
  EXPECT_EQ(Import(memory->fd()), Code::kOk);
  EXPECT_EQ(Import(memory->fd(), kWhole), Code::METADATA_INCOMPLETE_BUFFER);
  EXPECT_EQ(Import(memory->fd(), SIZE_MAX), Code::METADATA_INCOMPLETE_BUFFER);
  EXPECT_EQ(Import(memory->fd(), 0), Code::METADATA_INCOMPLETE_BUFFER);
  EXPECT_EQ(Import(memory->fd(), kWhole + 1024, std::string(32, 'b')), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Import(-1), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Import(Memfd(kAll).get()), Code::kOk);
  for (int missing : {F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE})
    EXPECT_EQ(Import(Memfd(kAll & ~missing).get()), Code::INVALID_ARGUMENT) << missing;
  EXPECT_EQ(Import(Memfd(kAll, /*filled=*/false).get()), Code::INVALID_ARGUMENT);
  UniqueFd ordinary(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Import(ordinary.get()), Code::INVALID_ARGUMENT);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  EXPECT_EQ(Import(ends[0]), Code::INVALID_ARGUMENT);
}

TEST_F(SealedMemoryTest, OutlivesTheProcessThatMadeIt) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  // No thread of the child is needed: SealMemory starts none.
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto fd = Memfd(kAll);
    const int number = fd.get();
    if (write(ends[1], &number, sizeof number) != sizeof number) _exit(1);
    pause();
  }
  int number = -1;
  ASSERT_EQ(read(ends[0], &number, sizeof number), static_cast<ssize_t>(sizeof number));
  const std::string path = "/proc/" + std::to_string(child) + "/fd/" + std::to_string(number);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(host_->ImportMemory(fd.get(), kWhole + 1024, kSeal, &buffer).ok());
  fd = UniqueFd();
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(std::string(At(*buffer), buffer->size()), std::string(kWhole + 1024, 'a'));
}

TEST_F(SealedMemoryTest, SaysThatThereIsNoMemoryForACopy) {
  std::shared_ptr<ExportedMemory> memory;
  EXPECT_EQ(host_->ExportMemory({}, size_t{1} << 50, kSeal, &memory).code(), Code::OUT_OF_HOST_MEMORY);
}

// --- shared_buffers.h

TEST_F(SealedMemoryTest, ATokenHoldsUntilItIsTaken) {
  auto buffer = Filled('x');
  std::weak_ptr<DeviceBuffer> weak = buffer;
  const std::string token = ShareBuffer({std::move(buffer), 10, 20}), other = ShareBuffer({Filled('y'), 0, 5});
  std::vector<SharedPart> parts;
  EXPECT_EQ(TakeShared({token, other + "0"}, {20, 5}, &parts).code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(TakeShared({token, other}, {20, 6}, &parts).code(), Code::TENSOR_INVALID_INFO);
  EXPECT_EQ(TakeShared({token, ""}, {20, 5}, &parts).code(), Code::INVALID_ARGUMENT);
  EXPECT_FALSE(weak.expired());
  ASSERT_TRUE(TakeShared({token, token, other}, {20, 20, 5}, &parts).ok());
  EXPECT_EQ(parts[1].offset, 10u);
  EXPECT_EQ(parts[0].buffer, parts[1].buffer);
  parts.clear();
  EXPECT_TRUE(weak.expired());
  EXPECT_EQ(TakeShared({token}, {20}, &parts).code(), Code::CLOSED);
}

TEST_F(SealedMemoryTest, ARevokedTokenHoldsNothing) {
  auto buffer = Filled('x');
  const std::string token = ShareBuffer({buffer, 0, kSize});
  RevokeShared(token);
  RevokeShared(token);
  RevokeShared("nothing");
  EXPECT_EQ(buffer.use_count(), 1);
}

TEST_F(SealedMemoryTest, ThreadsShareTakeAndRevokeAtOnce) {
  std::vector<std::thread> threads;
  auto all = Filled('x');
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this, all] {
      for (int round = 0; round < 500; ++round) {
        const std::string token = ShareBuffer({round % 2 == 0 ? all : Filled('y'), 0, 1});
        std::vector<SharedPart> parts;
        EXPECT_TRUE(TakeShared({token}, {1}, &parts).ok());
        RevokeShared(token);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(all.use_count(), 1);
}

}  // namespace
}  // namespace fst
