// Loading the two libraries by dlopen, and the statuses made of their error codes.
#include "device/cuda_api.h"

#include <unistd.h>

#include <cerrno>
#include <string>

#include "emulated_cuda.h"
#include "reader/gds/cufile_api.h"
#include "support/few_descriptors.h"

namespace fst {
namespace {

using ::testing::Test;

// The environment of the other tests, whatever a test here sets.
class CudaApiTest : public Test {
 protected:
  void TearDown() override {
    (void)test::LoadEmulatedCuda();
    test::EmulatedCudaControl().reset();
  }
  static bool Contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }
};

TEST_F(CudaApiTest, SaysWhichLibraryCannotBeLoadedAndWhy) {
  setenv("FASTSAFETENSORS_CUDA_LIB", "/no/such/libcuda.so", 1);
  const cuda::CudaApi* api = nullptr;
  Status status = cuda::LoadCuda(&api);
  EXPECT_EQ(status.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_TRUE(Contains(status.message(), "/no/such/libcuda.so cannot be loaded: ")) << status.message();
  EXPECT_TRUE(Contains(status.message(), "No such file or directory")) << status.message();
  EXPECT_TRUE(Contains(status.message(), "FASTSAFETENSORS_CUDA_LIB names")) << status.message();
  EXPECT_EQ(api, nullptr);
}

TEST_F(CudaApiTest, RemembersThatALibraryCannotBeLoaded) {
  std::string path = "/tmp/cuda_api_test_" + std::to_string(getpid()) + ".so";
  setenv("FASTSAFETENSORS_CUDA_LIB", path.c_str(), 1);
  const cuda::CudaApi* api = nullptr;
  Status first = cuda::LoadCuda(&api);
  ASSERT_EQ(symlink(FST_BINARY_DIR "/emulators/libcuda.so.1", path.c_str()), 0);
  Status second = cuda::LoadCuda(&api);
  EXPECT_EQ(unlink(path.c_str()), 0);
  EXPECT_FALSE(first.ok());
  EXPECT_EQ(second.message(), first.message());
}

TEST_F(CudaApiTest, TriesAgainWhenNoDescriptorWasLeft) {
  const std::string path = "/tmp/cuda_api_test_" + std::to_string(getpid()) + "_few.so";
  ASSERT_EQ(symlink(FST_BINARY_DIR "/emulators/libcuda.so.1", path.c_str()), 0);
  setenv("FASTSAFETENSORS_CUDA_LIB", path.c_str(), 1);
  const cuda::CudaApi* api = nullptr;
  Status first;
  {
    SoftLimit none(0);
    first = cuda::LoadCuda(&api);
  }
  const Status second = cuda::LoadCuda(&api);
  EXPECT_EQ(unlink(path.c_str()), 0);
  EXPECT_EQ(first.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_EQ(first.os_error(), EMFILE);
  EXPECT_TRUE(Contains(first.message(),
                       "cannot be loaded: Too many open files (EMFILE); this process may have 0 open: "
                       "raise the limit of open files (ulimit -n)"))
      << first.message();
  EXPECT_TRUE(second.ok()) << second.message();
}

TEST_F(CudaApiTest, NamesTheSymbolsThatALibraryLacks) {
  setenv("FASTSAFETENSORS_CUDA_LIB", FST_BINARY_DIR "/emulators/libcufile.so.0", 1);
  const cuda::CudaApi* api = nullptr;
  Status status = cuda::LoadCuda(&api);
  EXPECT_EQ(status.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_TRUE(Contains(status.message(), "libcufile.so.0 lacks cuInit, cuDriverGetVersion, ")) << status.message();
}

TEST_F(CudaApiTest, NeedsNoFunctionThatIsNeverCalled) {
  setenv("FASTSAFETENSORS_CUDA_LIB", FST_BINARY_DIR "/test-support/libbare_cuda.so", 1);
  const cuda::CudaApi* api = nullptr;
  Status status = cuda::LoadCuda(&api);
  EXPECT_TRUE(status.ok()) << status.message();
  ASSERT_NE(api, nullptr);
  EXPECT_TRUE(Contains(api->lacks_sharing, "cuMemGetAllocationGranularity, cuMemCreate, ")) << api->lacks_sharing;
}

TEST_F(CudaApiTest, LoadsALibraryOnce) {
  const cuda::CudaApi* first = test::LoadEmulatedCuda();
  const cuda::CudaApi* second = test::LoadEmulatedCuda();
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first, second);
  unsigned long long starts = test::EmulatedCudaControl().call_count("cuInit");
  (void)test::LoadEmulatedCuda();
  EXPECT_EQ(test::EmulatedCudaControl().call_count("cuInit"), starts) << "and started once";
  EXPECT_TRUE(Contains(first->library, "/emulators/libcuda.so.1"));
}

// A path of its own is a library of its own, so cuInit runs again.
TEST_F(CudaApiTest, TriesAFailedStartAgain) {
  ASSERT_NE(test::LoadEmulatedCuda(), nullptr);
  setenv("FASTSAFETENSORS_CUDA_LIB", FST_BINARY_DIR "/emulators/../emulators/libcuda.so.1", 1);
  ASSERT_EQ(test::EmulatedCudaControl().set_fail("cuInit", 1, cuda::kNoDevice), 0);
  const cuda::CudaApi* api = nullptr;
  Status status = cuda::LoadCuda(&api);
  EXPECT_EQ(status.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_TRUE(Contains(status.message(), "CUDA_ERROR_NO_DEVICE (100)")) << status.message();
  EXPECT_EQ(api, nullptr);
  status = cuda::LoadCuda(&api);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_NE(api, nullptr);
}

TEST_F(CudaApiTest, TurnsErrorCodesIntoStatuses) {
  const cuda::CudaApi* api = test::LoadEmulatedCuda();
  ASSERT_NE(api, nullptr);
  EXPECT_TRUE(api->Check(cuda::kSuccess, "cuMemAlloc").ok());
  Status status = api->Check(cuda::kInvalidValue, "cuMemAlloc");
  EXPECT_EQ(status.code(), Code::CUDA_ERROR);
  EXPECT_EQ(status.message(), "cuMemAlloc failed with CUDA_ERROR_INVALID_VALUE (1): invalid argument");
  EXPECT_EQ(api->Check(cuda::kOutOfMemory, "cuMemAlloc").code(), Code::OUT_OF_DEVICE_MEMORY);
  EXPECT_EQ(api->Check(cuda::kOutOfMemory, "cuMemHostRegister").code(), Code::OUT_OF_HOST_MEMORY);
  status = api->Check(cuda::kIllegalAddress, "cuStreamSynchronize");
  EXPECT_EQ(status.code(), Code::CUDA_ERROR);
  EXPECT_TRUE(Contains(status.message(), "CUDA_ERROR_ILLEGAL_ADDRESS (700)")) << status.message();
  EXPECT_TRUE(Contains(status.message(), "the device is lost for this process")) << status.message();
  EXPECT_FALSE(Contains(api->Check(cuda::kNotReady, "cuEventQuery").message(), "lost"));
  EXPECT_TRUE(Contains(api->Check(54321, "cuMemAlloc").message(), "unknown CUDA error (54321)"));
}

TEST_F(CudaApiTest, CufileStatusesNameTheirError) {
  setenv("FASTSAFETENSORS_CUFILE_LIB", "/no/such/libcufile.so", 1);
  const cufile::CufileApi* api = nullptr;
  Status status = cufile::LoadCufile(&api);
  EXPECT_EQ(status.code(), Code::COPIER_UNAVAILABLE);
  EXPECT_TRUE(Contains(status.message(), "/no/such/libcufile.so cannot be loaded: ")) << status.message();
  setenv("FASTSAFETENSORS_CUFILE_LIB", FST_BINARY_DIR "/emulators/libcuda.so.1", 1);
  status = cufile::LoadCufile(&api);
  EXPECT_TRUE(Contains(status.message(), "lacks cuFileDriverOpen")) << status.message();
  unsetenv("FASTSAFETENSORS_CUFILE_LIB");

  using cufile::CufileApi;
  EXPECT_TRUE(CufileApi::Check({0, 0}, "cuFileHandleRegister").ok());
  status = CufileApi::Check({cufile::kCudaDriverError, 201}, "cuFileBufRegister");
  EXPECT_EQ(status.code(), Code::GDS_ERROR);
  EXPECT_EQ(status.message(), "cuFileBufRegister failed with CU_FILE_CUDA_DRIVER_ERROR (5011), CUresult 201");
  EXPECT_TRUE(CufileApi::CheckRead(17, 0).ok());
  EXPECT_EQ(CufileApi::CheckRead(-1, EIO).message(), "cuFileRead failed: Input/output error (EIO)");
  EXPECT_EQ(CufileApi::CheckRead(-EIO, 0).code(), Code::IO_ERROR);
  EXPECT_EQ(CufileApi::CheckRead(-5012, 0).message(), "cuFileRead failed with CU_FILE_CUDA_POINTER_INVALID (5012)");
}

}  // namespace
}  // namespace fst
