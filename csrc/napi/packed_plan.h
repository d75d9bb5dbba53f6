// A plan as JavaScript hands it over: arrays by item and by allocation.
#pragma once
#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "transfer/plan.h"

namespace fst {

// A NativePlan of src/native/core.ts. The constructor copies the files; Make reads the arrays, which must not be
// collected or change before.
class PackedPlan {
 public:
  // The environment's thread.
  explicit PackedPlan(const Napi::Object& object);

  // Any thread, once.
  Status Make(Plan* out);

  // The environment's thread, before Make. How many allocations a window reaches, and bytes: of those that take memory,
  // and of those that are mapped.
  uint64_t AllowedBytes(uint32_t window, size_t* count, uint64_t* mapped) const;

 private:
  template <class T>
  struct Array {
    const T* data = nullptr;
    size_t length = 0;
  };
  template <class T>
  static Array<T> ArrayOf(const Napi::Object& object, const char* name) {
    Napi::Value value = object.Get(name);
    if (!value.IsTypedArray()) return {};
    auto array = value.As<Napi::TypedArrayOf<T>>();
    return {array.Data(), array.ElementLength()};
  }

  std::vector<PlanFile> files_;
  Array<double> sizes_, offsets_, lengths_, destinations_, runs_, strides_, mapped_offsets_;
  Array<uint32_t> batches_, item_files_, allocations_, mapped_;
  Array<uint8_t> from_, to_, digest_kinds_, digests_;
  bool apart_ = false;
};

}  // namespace fst
