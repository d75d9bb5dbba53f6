#include "reader/gds/cufile_api.h"

namespace fst::cufile {
namespace {

constexpr LibrarySpec kLibrary = {
    Code::COPIER_UNAVAILABLE,
    "the GPUDirect Storage library",
    "FASTSAFETENSORS_CUFILE_LIB",
    "libcufile.so.0",
    "install GPUDirect Storage (libcufile of the CUDA toolkit), or set FASTSAFETENSORS_CUFILE_LIB to its path",
    "update it to the version of your CUDA toolkit",
};

// CUfileOpError, cufile.h of CUDA 13.
const char* OpErrorName(int error) {
  switch (error) {
#define X(code, name) \
  case 5000 + code:   \
    return "CU_FILE_" #name;
    X(1, DRIVER_NOT_INITIALIZED)
    X(2, DRIVER_INVALID_PROPS)
    X(3, DRIVER_UNSUPPORTED_LIMIT)
    X(4, DRIVER_VERSION_MISMATCH)
    X(5, DRIVER_VERSION_READ_ERROR)
    X(6, DRIVER_CLOSING)
    X(7, PLATFORM_NOT_SUPPORTED)
    X(8, IO_NOT_SUPPORTED)
    X(9, DEVICE_NOT_SUPPORTED)
    X(10, NVFS_DRIVER_ERROR)
    X(11, CUDA_DRIVER_ERROR)
    X(12, CUDA_POINTER_INVALID)
    X(13, CUDA_MEMORY_TYPE_INVALID)
    X(14, CUDA_POINTER_RANGE_ERROR)
    X(15, CUDA_CONTEXT_MISMATCH)
    X(16, INVALID_MAPPING_SIZE)
    X(17, INVALID_MAPPING_RANGE)
    X(18, INVALID_FILE_TYPE)
    X(19, INVALID_FILE_OPEN_FLAG)
    X(20, DIO_NOT_SET)
    X(22, INVALID_VALUE)
    X(23, MEMORY_ALREADY_REGISTERED)
    X(24, MEMORY_NOT_REGISTERED)
    X(25, PERMISSION_DENIED)
    X(26, DRIVER_ALREADY_OPEN)
    X(27, HANDLE_NOT_REGISTERED)
    X(28, HANDLE_ALREADY_REGISTERED)
    X(29, DEVICE_NOT_FOUND)
    X(30, INTERNAL_ERROR)
    X(31, GETNEWFD_FAILED)
    X(33, NVFS_SETUP_ERROR)
    X(34, IO_DISABLED)
    X(35, BATCH_SUBMIT_FAILED)
    X(36, GPU_MEMORY_PINNING_FAILED)
    X(37, BATCH_FULL)
    X(38, ASYNC_NOT_SUPPORTED)
    X(43, NOMEM_ERROR)
    X(44, IO_ERROR)
    X(45, INTERNAL_BUF_REGISTER_ERROR)
    X(46, HASH_OPR_ERROR)
    X(47, INVALID_CONTEXT_ERROR)
    X(48, NVFS_INTERNAL_DRIVER_ERROR)
#undef X
  }
  return nullptr;
}

}  // namespace

void CufileApi::Bind(const SharedLibrary& from, std::string* missing) {
#define X(member, symbol, result, parameters) from.Resolve(#symbol, &member, missing);
  FST_CUFILE_API(X)
#undef X
  from.Resolve("cuFileGetVersion", &GetVersion, nullptr);
}

Status LoadCufile(const CufileApi** out) { return SharedLibrary::LoadOnce(kLibrary, out); }

std::string OpErrorText(int error) {
  const char* name = OpErrorName(error);
  return name ? Format("%s (%d)", name, error) : Format("cuFile error %d", error);
}

std::string CufileApi::Version() const {
  int version = 0;
  if (GetVersion.pointer == nullptr || GetVersion(&version).err != kSuccess) return "";
  return Format("%d.%d.%d", version / 1000, version % 1000 / 10, version % 10);
}

Status CufileApi::Check(CUfileError result, const char* call) {
  if (result.err == kSuccess) return Status::Ok();
  std::string message = std::string(call) + " failed with " + OpErrorText(result.err);
  if (result.err == kCudaDriverError) message += Format(", CUresult %d", result.cu_err);
  return Status(Code::GDS_ERROR, std::move(message));
}

Status CufileApi::CheckRead(ssize_t result, int error) {
  if (result >= 0) return Status::Ok();
  if (result == -1) return Status(Code::IO_ERROR, "cuFileRead failed: " + ErrnoText(error));
  if (result > -5000) return Status(Code::IO_ERROR, "cuFileRead failed: " + ErrnoText(static_cast<int>(-result)));
  return Status(Code::GDS_ERROR, "cuFileRead failed with " + OpErrorText(static_cast<int>(-result)));
}

bool IsRefusal(int error) {
  switch (error) {
    case kDriverNotInitialized:
    case 5007:  // PLATFORM_NOT_SUPPORTED
    case kIoNotSupported:
    case kDeviceNotSupported:
    case 5013:  // CUDA_MEMORY_TYPE_INVALID
    case 5016:  // INVALID_MAPPING_SIZE
    case 5017:  // INVALID_MAPPING_RANGE
    case kInvalidFileType:
    case kInvalidFileOpenFlag:
    case kDioNotSet:
    case kPermissionDenied:
    case kInternalError:  // what registering a file of an unsupported file system was seen to give
    case 5033:            // NVFS_SETUP_ERROR
    case kIoDisabled:
    case 5036:  // GPU_MEMORY_PINNING_FAILED
      return true;
    default:
      return false;
  }
}

Mode ModeOf(const CUfileDrvProps& properties) {
  bool nvidia_fs = properties.nvfs.major_version != 0 || properties.nvfs.minor_version != 0;
  bool p2p = (properties.nvfs.dstatusflags >> kStatusNvmeP2p & 1) != 0 || (properties.fflags >> kFeatureP2p & 1) != 0;
  return Mode{nvidia_fs || p2p, (properties.nvfs.dcontrolflags >> kControlAllowCompat & 1) != 0};
}

}  // namespace fst::cufile
