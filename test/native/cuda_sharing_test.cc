// GPU memory that other processes get: what the driver is asked for, what is refused, and that nothing of it is left,
// whichever call fails.
#include "device/cuda_sharing.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda_load_fixture.h"
#include "device/cuda_device.h"

namespace fst {
namespace {

using test::Bytes;
using test::Pattern;

const std::string kSeal(32, 'f');
constexpr size_t kShared = 3 << 20, kSize = kShared + 1024 + 32;

class CudaSharingTest : public test::CudaLoadTest {
 protected:
  void SetUp() override {
    CudaLoadTest::SetUp();
    ASSERT_TRUE(OpenDevice("cuda:0", false, &device_).ok());
    ASSERT_TRUE(device_->Allocate(kShared, &source_).ok());
    ASSERT_TRUE(device_->Write(*source_, 0, kShared, pattern_.data()).ok());
  }
  void TearDown() override {
    source_.reset();
    WaitForFrees();
    EXPECT_EQ(cuda.live_virtual(), 0u);
    device_.reset();
    CudaLoadTest::TearDown();
  }

  Status Export(std::shared_ptr<ExportedMemory>* out) {
    return device_->ExportMemory({{source_, 5, 1000, 0}, {source_, 0, kShared, 1024}}, kSize, kSeal, out);
  }
  std::shared_ptr<ExportedMemory> Exported() {
    std::shared_ptr<ExportedMemory> memory;
    Status made = Export(&memory);
    EXPECT_TRUE(made.ok()) << made.message();
    return memory;
  }
  Code Import(int fd, size_t size = kSize, const std::string& seal = kSeal) {
    std::shared_ptr<DeviceBuffer> buffer;
    return device_->ImportMemory(fd, size, seal, &buffer).code();
  }

  const Bytes pattern_ = Pattern(kShared, 7);
  std::shared_ptr<Device> device_;
  std::shared_ptr<DeviceBuffer> source_;
};

TEST_F(CudaSharingTest, HasTheBytesAndOutlivesItsDescriptorAndItsSource) {
  auto memory = Exported();
  EXPECT_EQ(cuda.live_virtual(), 0u);  // the descriptor alone holds it
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(device_->ImportMemory(memory->fd(), kSize, kSeal, &buffer).ok());
  memory.reset();
  source_.reset();
  EXPECT_EQ(buffer->address() % 256, 0u);
  Bytes found(kSize);
  ASSERT_TRUE(device_->Read(*buffer, 0, kSize, found.data()).ok());
  EXPECT_TRUE(std::equal(pattern_.begin() + 5, pattern_.begin() + 1005, found.begin()));
  EXPECT_TRUE(std::equal(pattern_.begin(), pattern_.end(), found.begin() + 1024));
}

TEST_F(CudaSharingTest, AnImporterCannotWrite) {
  auto memory = Exported();
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(device_->ImportMemory(memory->fd(), kSize, kSeal, &buffer).ok());
  cuda.set_strict(0);
  EXPECT_FALSE(device_->Write(*buffer, 0, 16, pattern_.data()).ok());
}

TEST_F(CudaSharingTest, ADriverWithoutReadOnlyMappingsGivesWritableOnes) {
  auto memory = Exported();
  for (int code : {fst::cuda::kNotSupported, fst::cuda::kInvalidValue}) {
    cuda.set_fail("cuMemSetAccess", 1, code);
    EXPECT_EQ(Import(memory->fd()), Code::kOk);
  }
}

TEST_F(CudaSharingTest, TakesNothingButMemoryOfTheSizeAndSealThatAreSaid) {
  auto memory = Exported();
  EXPECT_EQ(Import(memory->fd()), Code::kOk);
  EXPECT_EQ(Import(memory->fd(), kSize + (4 << 20)), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Import(memory->fd(), kSize - 1), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Import(memory->fd(), SIZE_MAX), Code::METADATA_INCOMPLETE_BUFFER);
  EXPECT_EQ(Import(memory->fd(), 0), Code::METADATA_INCOMPLETE_BUFFER);
  EXPECT_NE(Import(memory->fd(), size_t{1} << 53), Code::kOk);
  EXPECT_EQ(Import(memory->fd(), kSize, std::string(32, 'e')), Code::INVALID_ARGUMENT);
  EXPECT_EQ(Import(-1), Code::INVALID_ARGUMENT);
  UniqueFd other(memfd_create("other", MFD_CLOEXEC));
  EXPECT_EQ(Import(other.get()), Code::INVALID_ARGUMENT);
  // As with the real one, a descriptor that is opened anew is no memory.
  UniqueFd again(open(("/proc/self/fd/" + std::to_string(memory->fd())).c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Import(again.get()), Code::INVALID_ARGUMENT);
}

TEST_F(CudaSharingTest, GivesEverythingBackWhicheverCallFails) {
  auto memory = Exported();
  const char* exporting[] = {"cuMemGetAllocationGranularity",
                             "cuMemCreate",
                             "cuMemAddressReserve",
                             "cuMemMap",
                             "cuMemSetAccess",
                             "cuMemcpyDtoD_v2",
                             "cuMemcpyHtoD_v2",
                             "cuMemExportToShareableHandle"};
  for (const char* function : exporting) {
    cuda.set_fail(function, 1, 999);
    std::shared_ptr<ExportedMemory> another;
    EXPECT_EQ(Export(&another).code(), Code::CUDA_ERROR) << function;
    EXPECT_EQ(cuda.live_virtual(), 0u) << function;
  }
  const char* importing[] = {"cuMemGetAllocationGranularity", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess",
                             "cuMemcpyDtoH_v2"};
  for (const char* function : importing) {
    cuda.set_fail(function, 1, 999);
    EXPECT_EQ(Import(memory->fd()), Code::CUDA_ERROR) << function;
    WaitForFrees();
    EXPECT_EQ(cuda.live_virtual(), 0u) << function;
  }
  cuda.set_fail("cuMemCreate", 1, fst::cuda::kOutOfMemory);
  std::shared_ptr<ExportedMemory> another;
  EXPECT_EQ(Export(&another).code(), Code::OUT_OF_DEVICE_MEMORY);
  EXPECT_EQ(cuda.live_allocations(), 1u);
}

TEST_F(CudaSharingTest, SaysWhereThereIsNoSuchMemory) {
  std::shared_ptr<ExportedMemory> memory;
  for (int attribute : {fst::cuda::kAttributeVirtualMemorySupported, fst::cuda::kAttributePosixFdSupported}) {
    cuda.set_attribute(0, attribute, 0);
    EXPECT_EQ(Export(&memory).code(), Code::DEVICE_UNAVAILABLE);
    EXPECT_EQ(Import(0), Code::DEVICE_UNAVAILABLE);
    cuda.set_attribute(0, attribute, 1);
  }
  std::shared_ptr<Device> unified;
  ASSERT_TRUE(OpenDevice("cuda:0", true, &unified).ok());
  std::shared_ptr<DeviceBuffer> managed;
  ASSERT_TRUE(unified->Allocate(1000, &managed).ok());
  EXPECT_EQ(unified->ExportMemory({{managed, 0, 1000, 0}}, 2000, kSeal, &memory).code(), Code::DEVICE_UNAVAILABLE);
}

TEST_F(CudaSharingTest, FindsAGpuByItsPlaceOnTheBus) {
  std::shared_ptr<Device> second;
  ASSERT_TRUE(OpenDevice("cuda:1", false, &second).ok());
  int found = 7;
  ASSERT_TRUE(FindCudaDevice(second->info().bus_id, 0, &found).ok());
  EXPECT_EQ(found, 1);
  ASSERT_TRUE(FindCudaDevice("0000:00:00.0", 0, &found).ok());
  EXPECT_EQ(found, -1);
}

// The emulator itself: what a driver does not forgive ends the process.
TEST_F(CudaSharingTest, TheEmulatorAbortsOnMisuse) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(cu->MemRelease(12345), "cuMemRelease of handle 0x3039, which does not exist");
  EXPECT_DEATH(cu->MemUnmap(source_->address(), kShared), "cuMemUnmap of .* which are no mapping");
  EXPECT_DEATH(cu->MemAddressFree(source_->address(), kShared), "cuMemAddressFree of .* which are no reserved range");
  EXPECT_DEATH(cu->MemMap(source_->address(), 2 << 20, 0, 12345, 0), "cuMemMap of handle");
}

}  // namespace
}  // namespace fst
