// The emulated cuFile's own behaviour: bytes of the file reach device memory, and what it promises to refuse or catch,
// it does.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "emulated_cuda.h"
#include "emulated_cufile.h"

namespace fst::cufile {
namespace {

using test::Bytes;

constexpr size_t kRegistered = 1 << 20, kFileBytes = kRegistered + 1000;

class CufileEmulatorTest : public test::EmulatedCudaTest {
 protected:
  void SetUp() override {
    EmulatedCudaTest::SetUp();
    setenv("FASTSAFETENSORS_CUFILE_LIB", FST_BINARY_DIR "/emulators/libcufile.so.0", 1);
    Status loaded = LoadCufile(&gds);
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    file_ctl.reset();
    ASSERT_EQ(gds->DriverOpen().err, 0) << file_ctl.last_refusal();
    char path[] = "/tmp/cufile_emulator_XXXXXX";
    fd = mkstemp(path);
    ASSERT_GE(fd, 0);
    content = test::Pattern(kFileBytes, 3);
    ASSERT_EQ(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    ASSERT_EQ(unlink(path), 0);
    ASSERT_EQ(cu->MemAlloc(&device, 2 * kRegistered), cuda::kSuccess);
    base = reinterpret_cast<void*>(device);
    ASSERT_EQ(Register(&handle), 0) << file_ctl.last_refusal();
  }
  void TearDown() override {
    file_ctl.reset();
    gds->HandleDeregister(handle);
    close(fd);
    EXPECT_EQ(cu->MemFree(device), cuda::kSuccess);
    EXPECT_EQ(file_ctl.live_handles(), 0u);
    EXPECT_EQ(file_ctl.live_buffers(), 0u);
    EXPECT_EQ(gds->DriverClose().err, 0);
    EmulatedCudaTest::TearDown();
  }

  int Register(void** made) {
    CUfileDescr description = {};
    description.type = kHandleTypeOpaqueFd;
    description.handle.fd = fd;
    return gds->HandleRegister(made, &description).err;
  }

  Bytes Read(size_t offset, size_t bytes) {
    Bytes made(bytes);
    EXPECT_EQ(cu->MemcpyDtoH(made.data(), device + offset, bytes), cuda::kSuccess);
    return made;
  }
  Bytes Expected(size_t offset, size_t bytes) { return Bytes(&content[offset], &content[offset] + bytes); }

  // A read on a thread of its own that is in flight, and has acquired what it needs, until the hold ends.
  std::thread HeldRead() {
    file_ctl.hold(1);
    std::thread reader([this] {
      EXPECT_EQ(cu->CtxSetCurrent(context), cuda::kSuccess);
      EXPECT_EQ(gds->Read(handle, base, 4096, 0, 0), 4096);
    });
    while (file_ctl.in_flight() == 0) std::this_thread::yield();
    return reader;
  }

  const CufileApi* gds = nullptr;
  const test::CufileControl& file_ctl = test::EmulatedCufileControl();
  int fd = -1;
  Bytes content;
  void* handle = nullptr;
  cuda::CUdeviceptr device = 0;
  void* base = nullptr;
};
using CufileEmulatorDeathTest = CufileEmulatorTest;

TEST_F(CufileEmulatorTest, ReadsTheFileIntoDeviceMemory) {
  EXPECT_EQ(gds->Read(handle, base, kRegistered, 0, 0), static_cast<ssize_t>(kRegistered));
  EXPECT_EQ(Read(0, kRegistered), Expected(0, kRegistered));
  EXPECT_EQ(file_ctl.unaligned_reads(), 0u);
  EXPECT_EQ(file_ctl.unregistered_reads(), 1u);
  ASSERT_EQ(gds->BufRegister(base, 2 * kRegistered, 0).err, 0);
  EXPECT_EQ(gds->Read(handle, base, 1001, 333, 77), 1001);
  EXPECT_EQ(Read(77, 1001), Expected(333, 1001));
  EXPECT_EQ(file_ctl.unaligned_reads(), 1u);
  EXPECT_EQ(gds->Read(handle, base, kRegistered, kRegistered, 4096), 1000) << "the end of the file";
  EXPECT_EQ(Read(4096, 1000), Expected(kRegistered, 1000));
  EXPECT_EQ(file_ctl.unaligned_reads(), 1u);
  EXPECT_EQ(file_ctl.unregistered_reads(), 1u);
  EXPECT_EQ(gds->Read(handle, base, 4096, 4 * kRegistered, 0), 0) << "past it";
  EXPECT_EQ(gds->BufDeregister(base).err, 0);
}

TEST_F(CufileEmulatorTest, ReadsShortWhenAskedTo) {
  file_ctl.set_short_reads(5000);
  EXPECT_EQ(gds->Read(handle, base, kRegistered, 0, 0), 5000);
  EXPECT_EQ(file_ctl.bytes_read(), 5000u);
}

TEST_F(CufileEmulatorTest, BoundsReadsByBufferAndAllocation) {
  EXPECT_EQ(gds->Read(handle, base, kRegistered, 0, kRegistered + 1), -kCudaPointerInvalid) << file_ctl.last_refusal();
  ASSERT_EQ(gds->BufRegister(base, kRegistered, 0).err, 0);
  EXPECT_EQ(gds->Read(handle, base, kRegistered, 0, 1), -kInvalidValue);
  EXPECT_EQ(gds->Read(handle, base, 1, -1, 0), -kInvalidValue);
  EXPECT_EQ(gds->BufRegister(reinterpret_cast<char*>(base) + 4096, 4096, 0).err, kMemoryAlreadyRegistered);
  EXPECT_EQ(gds->BufRegister(reinterpret_cast<char*>(base) + kRegistered, kRegistered + 1, 0).err, kCudaPointerInvalid);
  EXPECT_EQ(gds->BufRegister(content.data(), 4096, 0).err, kCudaPointerInvalid) << "host memory";
  EXPECT_EQ(gds->BufDeregister(base).err, 0);
}

TEST_F(CufileEmulatorTest, WantsTheDevicesContext) {
  std::thread([this] { EXPECT_EQ(gds->Read(handle, base, 4096, 0, 0), -5015); }).join();
}

TEST_F(CufileEmulatorTest, TellsDirectFromCompatibilityMode) {
  CUfileDrvProps properties = {};
  ASSERT_EQ(gds->DriverGetProperties(&properties).err, 0);
  EXPECT_TRUE(ModeOf(properties).direct);
  EXPECT_TRUE(ModeOf(properties).compat_allowed);
  file_ctl.set_compat(1, 1);
  ASSERT_EQ(gds->DriverGetProperties(&properties).err, 0);
  EXPECT_FALSE(ModeOf(properties).direct);
  EXPECT_TRUE(ModeOf(properties).compat_allowed);
  file_ctl.set_compat(0, 0);
  ASSERT_EQ(gds->DriverGetProperties(&properties).err, 0);
  EXPECT_TRUE(ModeOf(properties).direct);
  EXPECT_FALSE(ModeOf(properties).compat_allowed);
}

TEST_F(CufileEmulatorTest, RefusesFilesByPath) {
  void* other = nullptr;
  EXPECT_EQ(Register(&other), kHandleAlreadyRegistered);
  gds->HandleDeregister(handle);
  file_ctl.set_refuse("*/cufile_emulator_*", kInternalError);
  EXPECT_EQ(Register(&handle), kInternalError);
  file_ctl.set_refuse("*/other_*", kInternalError);
  file_ctl.set_require_direct(1);
  EXPECT_EQ(Register(&handle), kDioNotSet);
  file_ctl.set_require_direct(0);
  EXPECT_EQ(Register(&handle), 0);
}

TEST_F(CufileEmulatorTest, FailsOnDemand) {
  ASSERT_EQ(file_ctl.set_fail("cuFileRead", 2, -EIO), 0);
  ASSERT_EQ(file_ctl.set_fail("cuFileRead", 3, kIoNotSupported), 0);
  EXPECT_EQ(file_ctl.set_fail("cuFileRaed", 1, 1), -1);
  EXPECT_EQ(gds->Read(handle, base, 4096, 0, 0), 4096);
  ssize_t failed = gds->Read(handle, base, 4096, 0, 0);
  int error = errno;
  EXPECT_EQ(failed, -1);
  EXPECT_EQ(CufileApi::CheckRead(failed, error).code(), Code::IO_ERROR);
  failed = gds->Read(handle, base, 4096, 0, 0);
  EXPECT_EQ(CufileApi::CheckRead(failed, 0).code(), Code::GDS_ERROR);
  EXPECT_NE(CufileApi::CheckRead(failed, 0).message().find("CU_FILE_IO_NOT_SUPPORTED (5008)"), std::string::npos);
  EXPECT_TRUE(IsRefusal(static_cast<int>(-failed)));
  EXPECT_FALSE(IsRefusal(kInvalidValue));
  for (int i = 0; file_ctl.function_name(i) != nullptr; ++i) file_ctl.set_fail(file_ctl.function_name(i), 1, 5010);
  EXPECT_EQ(gds->BufRegister(base, 4096, 0).err, 5010);
  EXPECT_EQ(gds->DriverOpen().err, 5010);
}

TEST_F(CufileEmulatorTest, OpensOnceAndNothingWorksBefore) {
  EXPECT_EQ(gds->DriverOpen().err, kDriverAlreadyOpen);
  gds->HandleDeregister(handle);
  ASSERT_EQ(gds->DriverClose().err, 0);
  CUfileDrvProps properties = {};
  EXPECT_EQ(gds->DriverGetProperties(&properties).err, kDriverNotInitialized);
  EXPECT_EQ(Register(&handle), kDriverNotInitialized);
  EXPECT_EQ(gds->BufRegister(base, 4096, 0).err, kDriverNotInitialized);
  EXPECT_EQ(gds->Read(handle, base, 4096, 0, 0), -kDriverNotInitialized);
  file_ctl.set_compat(1, 0);
  EXPECT_EQ(gds->DriverOpen().err, kDriverNotInitialized) << "neither nvidia-fs nor compatibility mode";
  file_ctl.set_compat(0, 1);
  ASSERT_EQ(gds->DriverOpen().err, 0);
  ASSERT_EQ(Register(&handle), 0);
}

TEST_F(CufileEmulatorTest, WritesDeviceMemoryLate) {
  Bytes zeroes(4096);
  ASSERT_EQ(cu->MemcpyHtoD(device, zeroes.data(), zeroes.size()), cuda::kSuccess);
  std::thread reader = HeldRead();
  EXPECT_EQ(Read(0, 4096), zeroes);
  file_ctl.hold(0);
  reader.join();
  EXPECT_EQ(Read(0, 4096), Expected(0, 4096));
}

TEST_F(CufileEmulatorDeathTest, ReleasingUnderReadsInFlightAborts) {
  ASSERT_EQ(gds->BufRegister(base, kRegistered, 0).err, 0);
  std::thread reader = HeldRead();
  EXPECT_DEATH(gds->HandleDeregister(handle), "emulated cuFile: cuFileHandleDeregister of .* with 1 reads in flight");
  EXPECT_DEATH((void)gds->BufDeregister(base), "cuFileBufDeregister of .* with 1 reads in flight");
  EXPECT_DEATH((void)gds->DriverClose(), "cuFileDriverClose with 1 files and 1 buffers registered, 1 reads in flight");
  EXPECT_DEATH((void)cu->MemFree(device), "emulated CUDA: cuMemFree_v2 of .* while 1 operations on it are pending");
  file_ctl.hold(0);
  reader.join();
  EXPECT_EQ(gds->BufDeregister(base).err, 0);
}

TEST_F(CufileEmulatorDeathTest, ReleasingTheUnknownAborts) {
  EXPECT_DEATH(gds->HandleDeregister(&fd), "cuFileHandleDeregister of .*, which is not registered");
  EXPECT_DEATH((void)gds->BufDeregister(base), "cuFileBufDeregister of .*, which is not registered");
  EXPECT_DEATH((void)gds->Read(&fd, base, 1, 0, 0), "cuFileRead of .*, which is not registered");
  ASSERT_EQ(gds->BufRegister(base, kRegistered, 0).err, 0);
  EXPECT_DEATH(
      {
        (void)cu->MemFree(device);
        (void)gds->BufDeregister(base);
      },
      "whose memory was freed before");
  EXPECT_DEATH(
      {
        close(fd);
        (void)gds->Read(handle, base, 1, 0, 0);
      },
      "cuFileRead of .*, whose descriptor [0-9]+ was closed");
  EXPECT_DEATH(
      {
        close(fd);
        gds->HandleDeregister(handle);
      },
      "cuFileHandleDeregister of .*, whose descriptor [0-9]+ was closed before");
  EXPECT_EQ(gds->BufDeregister(base).err, 0);
}

}  // namespace
}  // namespace fst::cufile
