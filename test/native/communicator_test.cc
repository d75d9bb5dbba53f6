// Broadcasts between ranks of this process, over the emulated NCCL: what arrives, what hangs, and that nothing is left,
// whichever call fails.
#include "device/communicator.h"

#include <dlfcn.h>

#include <future>
#include <string>
#include <vector>

#include "cuda_load_fixture.h"
#include "emulators/nccl/control.h"

namespace fst {
namespace {

using std::chrono::milliseconds;
using test::Bytes;
using test::Pattern;

struct NcclControl {
#define X(name, result, parameters) result(*name) parameters = nullptr;
  FST_EMU_NCCL_CONTROL(X)
#undef X
};

const NcclControl& EmulatedNccl() {
  static const NcclControl control = [] {
    NcclControl made;
    setenv("FASTSAFETENSORS_NCCL_LIB", FST_BINARY_DIR "/emulators/libnccl.so.2", 1);
    void* library = dlopen(FST_BINARY_DIR "/emulators/libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(library, nullptr) << dlerror();
#define X(name, result, parameters) \
  made.name = reinterpret_cast<decltype(made.name)>(dlsym(library, "fst_emu_nccl_" #name));
    FST_EMU_NCCL_CONTROL(X)
#undef X
    return made;
  }();
  return control;
}

constexpr size_t kBroadcast = 700'000;

class CommunicatorTest : public test::CudaLoadTest {
 protected:
  struct Rank {
    std::shared_ptr<Device> device;
    std::shared_ptr<DeviceBuffer> own, all;
    std::shared_ptr<Communicator> communicator;
  };

  void SetUp() override {
    CudaLoadTest::SetUp();
    nccl.reset();
    ASSERT_TRUE(nccl::NewUniqueId(&id_).ok());
    for (int i = 0; i < 2; ++i) {
      Rank rank;
      ASSERT_TRUE(OpenDevice("cuda:" + std::to_string(i), false, &rank.device).ok());
      ASSERT_TRUE(rank.device->Allocate(kBroadcast, &rank.own).ok());
      ASSERT_TRUE(rank.device->Allocate(kBroadcast, &rank.all).ok());
      ASSERT_TRUE(
          rank.device->Write(*rank.own, 0, kBroadcast, Pattern(kBroadcast, static_cast<unsigned>(i)).data()).ok());
      ASSERT_TRUE(Communicator::Open({rank.device, id_, i, 2}, &rank.communicator).ok());
      ranks_.push_back(std::move(rank));
    }
  }
  void TearDown() override {
    std::vector<std::future<void>> closed;
    for (Rank& rank : ranks_) {
      auto promise = std::make_shared<std::promise<void>>();
      closed.push_back(promise->get_future());
      rank.communicator->Close([promise] { promise->set_value(); });
    }
    for (auto& each : closed) each.get();
    EXPECT_EQ(nccl.live_communicators(), 0u);
    EXPECT_EQ(Metrics::Get().in_flight, 0);
    ranks_.clear();
    WaitForFrees();
    EXPECT_EQ(cuda.live_streams(), 0u);
    nccl.reset();
    CudaLoadTest::TearDown();
  }

  // The second half of rank 1's bytes, then the first of rank 0's.
  std::future<Status> Start(int of, size_t lost = 0, milliseconds stall = milliseconds(20'000)) {
    const Rank& rank = ranks_[static_cast<size_t>(of)];
    const size_t half = kBroadcast / 2;
    std::vector<BroadcastPiece> pieces = {{of == 1 ? rank.own : nullptr, rank.all, half, half, half - lost, 1},
                                          {of == 0 ? rank.own : nullptr, rank.all, 0, 0, half, 0}};
    auto promise = std::make_shared<std::promise<Status>>();
    rank.communicator->Broadcast(std::move(pieces), stall,
                                 [promise](Status status) { promise->set_value(std::move(status)); });
    return promise->get_future();
  }
  void ExpectArrived(int of) {
    const Rank& rank = ranks_[static_cast<size_t>(of)];
    Bytes found(kBroadcast), expected = Pattern(kBroadcast, 0);
    const Bytes other = Pattern(kBroadcast, 1);
    std::copy(other.begin() + kBroadcast / 2, other.end(), expected.begin() + kBroadcast / 2);
    ASSERT_TRUE(rank.device->Read(*rank.all, 0, kBroadcast, found.data()).ok());
    EXPECT_TRUE(found == expected) << "rank " << of;
  }

  const NcclControl& nccl = EmulatedNccl();
  nccl::ncclUniqueId id_ = {};
  std::vector<Rank> ranks_;
};

TEST_F(CommunicatorTest, GivesEveryRankTheBytesOfTheOthers) {
  for (int round = 0; round < 3; ++round) {
    auto first = Start(0), second = Start(1);
    for (auto* each : {&first, &second}) {
      Status status = each->get();
      ASSERT_TRUE(status.ok()) << status.message();
    }
    ExpectArrived(0);
    ExpectArrived(1);
  }
  EXPECT_EQ(nccl.call_count("ncclCommInitRankConfig"), 2u) << "ranks connect once";
}

TEST_F(CommunicatorTest, StallsWhereAnotherRankDoesNotCome) {
  Status alone = Start(0, 0, milliseconds(200)).get();
  EXPECT_EQ(alone.code(), Code::STALLED);
  EXPECT_NE(alone.message().find("rank 0 of 2 waited 200 ms"), std::string::npos) << alone.message();
  EXPECT_EQ(Start(0).get().message(), alone.message()) << "a communicator that has failed is over";
}

TEST_F(CommunicatorTest, AbortsWhatHangsAndDrainsItBeforeMemoryIsFreed) {
  nccl.set_hang(2);
  auto first = Start(0, 0, milliseconds(300)), second = Start(1, 0, milliseconds(300));
  EXPECT_EQ(first.get().code(), Code::STALLED);
  EXPECT_EQ(second.get().code(), Code::STALLED);
  ranks_[0].all.reset();  // the emulator aborts the process for memory that is freed while it is used
  ranks_[1].all.reset();
}

TEST_F(CommunicatorTest, ClosingEndsWhatIsInFlight) {
  auto first = Start(0);
  std::promise<void> closed;
  ranks_[0].communicator->Close([&] { closed.set_value(); });
  closed.get_future().get();
  EXPECT_EQ(first.get().code(), Code::CLOSED);
  EXPECT_EQ(Start(0).get().code(), Code::CLOSED);
}

TEST_F(CommunicatorTest, TellsOfAnotherRankThatHasLeft) {
  auto first = Start(0), second = Start(1);
  ASSERT_TRUE(first.get().ok());
  ASSERT_TRUE(second.get().ok());
  nccl.set_notice(1);
  nccl.set_fail("ncclGroupStart", 1, nccl::kSystemError);
  Status failed = Start(1).get();
  EXPECT_EQ(failed.code(), Code::CUDA_ERROR);
  EXPECT_NE(failed.message().find("ncclGroupStart failed with 2: unhandled system error"), std::string::npos);
  Status remote = Start(0).get();
  EXPECT_EQ(remote.code(), Code::CUDA_ERROR);
  EXPECT_NE(remote.message().find("remote process exited"), std::string::npos) << remote.message();
}

TEST_F(CommunicatorTest, EveryCallThatFailsIsATypedError) {
  for (const char* call : {"ncclCommInitRankConfig", "ncclCommGetAsyncError", "ncclGroupStart", "ncclBroadcast",
                           "ncclGroupEnd", "execute"}) {
    nccl.reset();
    ASSERT_EQ(nccl.set_fail(call, 1, nccl::kInternalError), 0);
    auto first = Start(0, 0, milliseconds(300)), second = Start(1, 0, milliseconds(300));
    std::vector<Code> codes = {first.get().code(), second.get().code()};
    EXPECT_TRUE(codes[0] == Code::CUDA_ERROR || codes[1] == Code::CUDA_ERROR) << call;
    for (Code code : codes) EXPECT_TRUE(code == Code::CUDA_ERROR || code == Code::STALLED) << call;
    TearDown();
    SetUp();
  }
}

TEST_F(CommunicatorTest, NeedsAGpuWithMemoryOfItsOwn) {
  std::shared_ptr<Device> host;
  ASSERT_TRUE(OpenDevice("cpu", false, &host).ok());
  std::shared_ptr<Communicator> communicator;
  EXPECT_EQ(Communicator::Open({host, id_, 0, 2}, &communicator).code(), Code::DEVICE_UNAVAILABLE);
}

using CommunicatorDeathTest = CommunicatorTest;

TEST_F(CommunicatorDeathTest, TheEmulatorSeesThatRanksDiffer) {
  auto differ = [this] {
    auto first = Start(0), second = Start(1, 8);
    first.wait();
    second.wait();
  };
  EXPECT_DEATH(differ(), "ranks differ");
}

TEST(NcclApiTest, NamesTheSymbolsThatALibraryLacks) {
  (void)EmulatedNccl();
  setenv("FASTSAFETENSORS_NCCL_LIB", FST_BINARY_DIR "/emulators/libcufile.so.0", 1);
  const nccl::NcclApi* api = nullptr;
  Status status = nccl::LoadNccl(&api);
  setenv("FASTSAFETENSORS_NCCL_LIB", FST_BINARY_DIR "/emulators/libnccl.so.2", 1);
  EXPECT_EQ(status.code(), Code::COPIER_UNAVAILABLE);
  EXPECT_NE(status.message().find("libcufile.so.0 lacks ncclGetVersion, ncclGetUniqueId, "), std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace fst
