// The 3FS client library as tests and benchmarks call it: the functions that the core calls, and those that make
// memory.
#pragma once
#include <memory>
#include <string>

#include "reader/usrbio/usrbio_api.h"

namespace fst::usrbio {

struct ClientApi : UsrbioApi {
  ClientApi() = default;
  explicit ClientApi(const UsrbioApi& api) : UsrbioApi(api) {}
  bool (*is_hf3fs)(int fd) = nullptr;
  // 0 | -errno. The library only ftruncates the memory: a full /dev/shm is a SIGBUS later.
  int (*iovcreate)(Iov*, const char* mount, size_t size, size_t block_size, int numa) = nullptr;
  void (*iovdestroy)(Iov*) = nullptr;
  void (*iovunlink)(Iov*) = nullptr;  // null in libraries that lack it
  size_t (*ior_size)(int entries) = nullptr;
};

// LoadUsrbio with all functions of ClientApi.
inline Status LoadClient(std::unique_ptr<const ClientApi>* out) {
  const UsrbioApi* api = nullptr;
  FST_RETURN_IF_ERROR(LoadUsrbio(&api));
  SharedLibrary library;
  FST_RETURN_IF_ERROR(SharedLibrary::Open(api->library, &library));
  auto client = std::make_unique<ClientApi>(*api);
  std::string missing;
  library.Resolve("hf3fs_is_hf3fs", &client->is_hf3fs, &missing);
  library.Resolve("hf3fs_iovcreate", &client->iovcreate, &missing);
  library.Resolve("hf3fs_iovdestroy", &client->iovdestroy, &missing);
  library.Resolve("hf3fs_ior_size", &client->ior_size, &missing);
  library.Resolve("hf3fs_iovunlink", &client->iovunlink, nullptr);
  if (!missing.empty()) return Status(Code::COPIER_UNAVAILABLE, api->library + " lacks " + missing);
  *out = std::move(client);
  return Status::Ok();
}

}  // namespace fst::usrbio
