#include "device/nccl_api.h"

namespace fst::nccl {
namespace {

constexpr LibrarySpec kLibrary = {
    Code::COPIER_UNAVAILABLE,
    "the NCCL library",
    "FASTSAFETENSORS_NCCL_LIB",
    "libnccl.so.2",
    "install NCCL (the package libnccl2 of NVIDIA, or nvidia-nccl-cu12 of pip, whose nvidia/nccl/lib/libnccl.so.2 "
    "FASTSAFETENSORS_NCCL_LIB has to name), or leave `broadcast` out of pg: each rank then reads by itself",
    "NCCL 2.14 and later 2.x have them: update NCCL",
};

}  // namespace

std::string VersionText(int version) {
  if (version < 10000) return Format("%d.%d.%d", version / 1000, version / 100 % 10, version % 100);
  return Format("%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
}

void NcclApi::Bind(const SharedLibrary& from, std::string* missing) {
#define X(member, symbol, result, parameters) from.Resolve(#symbol, &member, missing);
  FST_NCCL_API(X)
#undef X
  if (missing->empty() && GetVersion(&version) != kSuccess) version = 0;
}

Status NcclApi::Check(ncclResult_t result, const char* call, ncclComm_t comm) const {
  if (result == kSuccess || result == kInProgress) return Status::Ok();
  const char* text = GetErrorString(result);
  std::string message =
      Format("%s failed with %d: %s", call, result, text != nullptr ? text : "the process is exiting");
  const char* last = GetLastError(comm);
  if (last != nullptr && last[0] != '\0') message += std::string(" (") + last + ")";
  return Status(Code::CUDA_ERROR, message + "; NCCL_DEBUG=WARN tells more");
}

Status LoadNccl(const NcclApi** out) {
  const NcclApi* api = nullptr;
  FST_RETURN_IF_ERROR(SharedLibrary::LoadOnce(kLibrary, &api));
  if (api->version < kLeastVersion || api->version >= 30000) {
    return Status(Code::COPIER_UNAVAILABLE,
                  Format("the NCCL library %s is of version %s, expected 2.14 or a later 2.x; "
                         "install such a one",
                         api->library.c_str(), VersionText(api->version).c_str()));
  }
  *out = api;
  return Status::Ok();
}

Status NewUniqueId(ncclUniqueId* id) {
  const NcclApi* api = nullptr;
  FST_RETURN_IF_ERROR(LoadNccl(&api));
  return api->Check(api->GetUniqueId(id), "ncclGetUniqueId", nullptr);
}

}  // namespace fst::nccl
