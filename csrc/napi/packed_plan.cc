#include "napi/packed_plan.h"

#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "base/dtype.h"
#include "napi/header_values.h"

namespace fst {

PackedPlan::PackedPlan(const Napi::Object& object) {
  auto paths = object.Get("paths").As<Napi::Array>();
  auto identities = object.Get("identities").As<Napi::BigUint64Array>();
  for (uint32_t i = 0; i < paths.Length(); ++i) {
    Napi::HandleScope scope(object.Env());
    PlanFile planned;
    planned.path = paths.Get(i).As<Napi::String>();
    planned.expected = IdentityFrom(identities.Data() + 4 * i);
    files_.push_back(std::move(planned));
  }
  sizes_ = ArrayOf<double>(object, "allocationSizes");
  batches_ = ArrayOf<uint32_t>(object, "allocationBatches");
  item_files_ = ArrayOf<uint32_t>(object, "itemFiles");
  allocations_ = ArrayOf<uint32_t>(object, "itemAllocations");
  offsets_ = ArrayOf<double>(object, "itemOffsets");
  lengths_ = ArrayOf<double>(object, "itemLengths");
  destinations_ = ArrayOf<double>(object, "itemDestinations");
  runs_ = ArrayOf<double>(object, "itemRuns");
  strides_ = ArrayOf<double>(object, "itemStrides");
  from_ = ArrayOf<uint8_t>(object, "itemFrom");
  to_ = ArrayOf<uint8_t>(object, "itemTo");
  mapped_ = ArrayOf<uint32_t>(object, "allocationMapped");
  apart_ = object.Get("apart").ToBoolean();
  mapped_offsets_ = ArrayOf<double>(object, "allocationMappedOffsets");
  digest_kinds_ = ArrayOf<uint8_t>(object, "itemDigestKinds");
  digests_ = ArrayOf<uint8_t>(object, "itemDigests");
}

Status PackedPlan::Make(Plan* out) {
  Plan& plan = *out;
  const size_t count = item_files_.length;
  const bool converts = from_.length > 0;
  if (batches_.length != sizes_.length || allocations_.length != count || offsets_.length != count ||
      lengths_.length != count || destinations_.length != count || strides_.length != runs_.length ||
      (runs_.length > 0 && runs_.length != count) || mapped_offsets_.length != mapped_.length ||
      (mapped_.length > 0 && mapped_.length != sizes_.length) ||
      (converts && (from_.length != count || to_.length != count)) ||
      (digest_kinds_.length > 0 && digest_kinds_.length != count)) {
    return Status(Code::INVALID_ARGUMENT, "the arrays of the plan differ in length");
  }
  plan.files = std::move(files_);
  plan.apart = apart_;
  plan.allocations.reserve(sizes_.length);
  for (size_t i = 0; i < sizes_.length; ++i)
    plan.allocations.push_back({static_cast<uint64_t>(sizes_.data[i]), batches_.data[i]});
  for (size_t i = 0; i < mapped_.length; ++i) {
    plan.allocations[i].mapped = mapped_.data[i];
    plan.allocations[i].mapped_offset = static_cast<uint64_t>(mapped_offsets_.data[i]);
  }
  plan.items.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    plan.items.push_back({item_files_.data[i], allocations_.data[i], static_cast<uint64_t>(offsets_.data[i]),
                          static_cast<uint64_t>(lengths_.data[i]), static_cast<uint64_t>(destinations_.data[i])});
    if (runs_.length > 0) {
      plan.items.back().run = static_cast<uint64_t>(runs_.data[i]);
      plan.items.back().stride = static_cast<uint64_t>(strides_.data[i]);
    }
    if (!converts) continue;
    plan.items.back().from = static_cast<DType>(from_.data[i]);
    plan.items.back().to = static_cast<DType>(to_.data[i]);
  }
  FST_RETURN_IF_ERROR(
      DigestsOf(digest_kinds_.data, digest_kinds_.length, digests_.data, digests_.length, &plan.digests));
  return plan.Validate();
}

uint64_t PackedPlan::AllowedBytes(uint32_t window, size_t* count, uint64_t* mapped) const {
  const size_t most = std::min(sizes_.length, batches_.length);
  double taken = 0, shown = 0;
  for (; *count < most && batches_.data[*count] < window; ++*count) {
    const bool is_mapped = *count < mapped_.length && mapped_.data[*count] != PlanAllocation::kNone;
    (is_mapped ? shown : taken) += sizes_.data[*count];
  }
  *mapped = static_cast<uint64_t>(shown);
  return static_cast<uint64_t>(taken);
}

}  // namespace fst
