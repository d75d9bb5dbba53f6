// Freed host memory is used again: whole, in parts, joined; by one owner at a time, and never for long when idle.
#include "device/recycled_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/metrics.h"
#include "device/host_device.h"
#include "device/host_memory.h"
#include "support/engine_harness.h"

namespace fst {
namespace {

constexpr size_t kMiB = 1 << 20;

class RecycledMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override { DropRecycled(); }
  void TearDown() override { DropRecycled(); }

  static char* Allocate(size_t bytes) {
    void* memory = nullptr;
    EXPECT_TRUE(AllocateRecycled(bytes, &memory).ok());
    return static_cast<char*>(memory);
  }
};

bool IsMapped(void* page) {
  unsigned char state;
  return mincore(page, 4096, &state) == 0 || errno != ENOMEM;
}

TEST_F(RecycledMemoryTest, IsWhatWasFreed) {
  char* memory = Allocate(4 * kMiB);
  memset(memory, 'x', 4 * kMiB);
  ASSERT_TRUE(Recycle(memory, 4 * kMiB));
  EXPECT_EQ(RecycledBytes(), 4 * kMiB);
  EXPECT_EQ(Allocate(4 * kMiB - 100), memory) << "as many huge pages";
  EXPECT_EQ(RecycledBytes(), 0u);
  memory[4 * kMiB - 1] = 'y';
  FreeHost(memory, 4 * kMiB);
}

TEST_F(RecycledMemoryTest, IsCutAndJoined) {
  char* memory = Allocate(8 * kMiB);
  ASSERT_TRUE(Recycle(memory, 8 * kMiB));
  EXPECT_EQ(Allocate(2 * kMiB), memory);
  EXPECT_EQ(Allocate(3 * kMiB), memory + 2 * kMiB) << "rounded to 4 MiB";
  EXPECT_EQ(Allocate(2 * kMiB), memory + 6 * kMiB);
  ASSERT_TRUE(Recycle(memory, 2 * kMiB));
  ASSERT_TRUE(Recycle(memory + 6 * kMiB, 2 * kMiB));
  ASSERT_TRUE(Recycle(memory + 2 * kMiB, 3 * kMiB));
  EXPECT_EQ(RecycledBytes(), 8 * kMiB);
  EXPECT_EQ(Allocate(8 * kMiB), memory) << "its parts are one piece again";
  FreeHost(memory, 8 * kMiB);
}

TEST_F(RecycledMemoryTest, IsTheSmallestPieceThatIsLongEnough) {
  std::vector<char*> pieces;
  for (size_t length : {8, 2, 4, 6}) {
    pieces.push_back(Allocate(length * kMiB + kHugePage));  // the end stays in use, so that no two pieces touch
  }
  const size_t lengths[] = {8 * kMiB, 2 * kMiB, 4 * kMiB, 6 * kMiB};
  for (size_t i = 0; i < 4; ++i) ASSERT_TRUE(Recycle(pieces[i], lengths[i]));
  EXPECT_EQ(Allocate(4 * kMiB), pieces[2]);
  EXPECT_EQ(Allocate(5 * kMiB), pieces[3]);
  EXPECT_EQ(Allocate(4 * kMiB), pieces[0]);
  EXPECT_EQ(RecycledBytes(), 6 * kMiB);
  for (size_t i : {0, 2, 3}) FreeHost(pieces[i], i == 0 ? 4 * kMiB : lengths[i]);
  for (size_t i = 0; i < 4; ++i) FreeHost(pieces[i] + lengths[i], kHugePage);
}

TEST_F(RecycledMemoryTest, GoesBackWhereItIsTooShort) {
  char *one = Allocate(2 * kMiB + kHugePage), *other = Allocate(2 * kMiB + kHugePage);
  ASSERT_TRUE(Recycle(one, 2 * kMiB));
  ASSERT_TRUE(Recycle(other, 2 * kMiB));
  char* longer = Allocate(10 * kMiB);
  EXPECT_EQ(RecycledBytes(), 0u) << "kept and in use are more than was ever in use";
  for (char* piece : {one, other}) {
    if (piece < longer || piece >= longer + 10 * kMiB) {
      EXPECT_FALSE(IsMapped(piece));
    }
  }
  FreeHost(longer, 10 * kMiB);
  FreeHost(one + 2 * kMiB, kHugePage);
  FreeHost(other + 2 * kMiB, kHugePage);
}

TEST_F(RecycledMemoryTest, GoesBackWhenIdle) {
  char* memory = Allocate(2 * kMiB);
  ASSERT_TRUE(Recycle(memory, 2 * kMiB));
  EXPECT_TRUE(Eventually([] { return RecycledBytes() == 0; }));
  EXPECT_TRUE(Eventually([&] { return !IsMapped(memory); }));
  memory = Allocate(2 * kMiB);
  ASSERT_TRUE(Recycle(memory, 2 * kMiB));
  EXPECT_TRUE(Eventually([] { return RecycledBytes() == 0; })) << "a second time";
}

TEST_F(RecycledMemoryTest, KeepsNoMoreThanItsShareAndNothingSmall) {
  const size_t much = TotalHostBytes() / 8 + kHugePage;
  void* memory = nullptr;
  ASSERT_TRUE(AllocateHost(much, &memory).ok());  // never touched
  EXPECT_FALSE(Recycle(memory, much));
  FreeHost(memory, much);
  char* small = Allocate(kMiB);
  EXPECT_FALSE(Recycle(small, kMiB));
  FreeHost(small, kMiB);
  EXPECT_EQ(RecycledBytes(), 0u);
}

TEST_F(RecycledMemoryTest, HasOneOwnerAtATime) {
  std::vector<std::thread> threads;
  for (char id = 'a'; id < 'e'; ++id) {
    threads.emplace_back([id] {
      std::minstd_rand random(static_cast<unsigned>(id));
      std::vector<std::pair<char*, size_t>> held;
      for (int i = 0; i < 300; ++i) {
        const size_t bytes = (1 + random() % 5) * kHugePage - random() % 5000;
        held.emplace_back(Allocate(bytes), bytes);
        held.back().first[0] = held.back().first[bytes - 1] = id;
        if (held.size() < 4) continue;
        std::swap(held.back(), held[random() % held.size()]);
        const auto [memory, length] = held.back();
        held.pop_back();
        EXPECT_EQ(memory[0], id);
        EXPECT_EQ(memory[length - 1], id);
        if (!Recycle(memory, length)) FreeHost(memory, length);
      }
      for (const auto& [memory, length] : held) FreeHost(memory, length);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(RecycledMemoryTest, IsWhatADeviceAllocates) {
  const int64_t before = Metrics::Get().host_bytes;
  auto device = std::make_shared<HostDevice>("cpu");
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(device->Allocate(4 * kMiB, &buffer).ok());
  EXPECT_EQ(Metrics::Get().host_bytes, before + static_cast<int64_t>(4 * kMiB));
  const uint64_t address = buffer->address();
  buffer.reset();
  EXPECT_EQ(Metrics::Get().host_bytes, before);
  EXPECT_EQ(RecycledBytes(), 4 * kMiB);
  ASSERT_TRUE(device->Allocate(4 * kMiB, &buffer).ok());
  EXPECT_EQ(buffer->address(), address);
  buffer.reset();
  EXPECT_EQ(device->CheckAvailable(UINT64_MAX).code(), Code::OUT_OF_HOST_MEMORY);
  EXPECT_EQ(RecycledBytes(), 0u) << "what is kept is given back before a load is refused";
}

}  // namespace
}  // namespace fst
