// What is digested of one read, and when.
#include "transfer/digest_task.h"

#include <gtest/gtest.h>

#include <numeric>

namespace fst {
namespace {

class DigestTaskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::iota(bytes_.begin(), bytes_.end(), 'a');
    for (int i = 0; i < 2; ++i) expected_[i] = DigestOf(DigestKind::kXxh3, bytes_.data() + 400 * i, 400);
  }

  // Bytes `begin` to `end` of tensor 0 or 1, which are at `source` of the read. `bytes_` has one behind the other.
  DigestPiece Piece(int tensor, uint64_t source, uint64_t begin, uint64_t end) {
    const auto address = reinterpret_cast<uint64_t>(bytes_.data() + 400 * tensor + begin);
    return {digests_[tensor], nullptr, address,         end - begin,
            source,           begin,   &items_[tensor], end == 400 ? &expected_[tensor] : nullptr};
  }

  const std::string path_ = "model.safetensors";
  std::string bytes_ = std::string(800, ' ');
  const PlanItem items_[2] = {{0, 0, 1000, 400, 0}, {0, 0, 1400, 400, 512}};
  Digest expected_[2];
  std::shared_ptr<ItemDigest> digests_[2] = {std::make_shared<ItemDigest>(DigestKind::kXxh3),
                                             std::make_shared<ItemDigest>(DigestKind::kXxh3)};
};

TEST_F(DigestTaskTest, TakesWhatHasArrived) {
  DigestTask task({Piece(0, 0, 0, 400), Piece(1, 408, 0, 100)}, path_);
  for (size_t arrived : {1, 100, 404, 450}) {
    task.Arrived(arrived);
    EXPECT_FALSE(task.over());
  }
  EXPECT_EQ(digests_[0]->done, 400U);
  EXPECT_EQ(digests_[1]->done, 0U) << "not all of its piece";
  task.Arrived(508);
  EXPECT_TRUE(task.over());
  EXPECT_EQ(digests_[1]->done, 100U);
  DigestTask rest({Piece(1, 0, 100, 400)}, path_);
  rest.Run(true);
  EXPECT_TRUE(rest.over());
  EXPECT_TRUE(rest.status().ok()) << rest.status().message();
}

TEST_F(DigestTaskTest, WaitsForTheBytesBeforeItsOwn) {
  DigestTask first({Piece(0, 0, 0, 200)}, path_), second({Piece(0, 0, 200, 400)}, path_);
  second.Arrived(200);
  EXPECT_FALSE(second.over());
  first.Arrived(150);
  second.Arrived(200);
  EXPECT_FALSE(second.over()) << "before all of the first";
  first.Arrived(200);
  second.Arrived(200);
  EXPECT_TRUE(second.over());
  EXPECT_TRUE(second.status().ok());
}

// Else bytes of a file that has changed would be a mismatch before the read that brought them has noticed.
TEST_F(DigestTaskTest, OnOtherThreadsItWaitsUntilTheReadBeforeHasEnded) {
  DigestTask first({Piece(0, 0, 0, 200)}, path_), second({Piece(0, 0, 200, 400)}, path_);
  first.Arrived(200);
  second.Tell();
  EXPECT_FALSE(second.CanGoOn());
  second.Run(second.HasTurn());
  EXPECT_FALSE(second.over());
  first.Tell();
  EXPECT_TRUE(second.CanGoOn());
  second.Run(second.HasTurn());
  EXPECT_TRUE(second.over());
}

TEST_F(DigestTaskTest, ALaterReadTellsOfThoseBefore) {
  DigestTask first({Piece(0, 0, 0, 200)}, path_), second({Piece(0, 0, 200, 300)}, path_);
  DigestTask third({Piece(0, 0, 300, 400)}, path_);
  first.Arrived(200);
  second.Arrived(100);
  second.Tell();
  EXPECT_TRUE(third.HasTurn());
  first.Tell();
  EXPECT_TRUE(third.HasTurn());
}

TEST_F(DigestTaskTest, OnlyTheRestOfATensorWaits) {
  DigestTask task({Piece(0, 0, 200, 400), Piece(1, 200, 0, 400)}, path_), before({Piece(0, 0, 0, 200)}, path_);
  EXPECT_TRUE(task.CanGoOn());
  task.Arrived(600);
  EXPECT_EQ(digests_[1]->done, 400U);
  EXPECT_FALSE(task.over());
  EXPECT_FALSE(task.CanGoOn()) << "only its turn is missing";
  before.Run(true);
  before.Tell();
  EXPECT_TRUE(task.CanGoOn());
  const std::string elsewhere = bytes_;
  task.Move(reinterpret_cast<uint64_t>(elsewhere.data()) - reinterpret_cast<uint64_t>(bytes_.data()));
  bytes_.assign(800, 'x');
  task.Run(true);
  EXPECT_TRUE(task.over());
  EXPECT_TRUE(task.status().ok()) << task.status().message();
}

TEST_F(DigestTaskTest, IsOverWithTheFirstTensorThatIsNotRight) {
  bytes_[399] ^= 1;
  DigestTask task({Piece(0, 0, 0, 400), Piece(1, 400, 0, 400)}, path_);
  task.Arrived(800);
  EXPECT_TRUE(task.over());
  EXPECT_EQ(task.status().code(), Code::CHECKSUM_MISMATCH);
  EXPECT_EQ(task.status().offset(), 1000);
  EXPECT_EQ(task.status().path(), path_);
}

}  // namespace
}  // namespace fst
