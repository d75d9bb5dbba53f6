#include "transfer/plan.h"

namespace fst {

Status Plan::Validate() const {
  auto wrong = [](size_t item, const char* what) {
    return Status(Code::INVALID_ARGUMENT, Format("item %zu of the plan: %s", item, what));
  };
  for (const PlanAllocation& allocation : allocations) {
    if (!allocation.is_mapped()) continue;
    const uint64_t offset = allocation.mapped_offset;
    const bool inside = allocation.mapped < files.size() && offset <= files[allocation.mapped].expected.size &&
                        allocation.size <= files[allocation.mapped].expected.size - offset;
    if (!inside || offset % 4096 != 0)
      return Status(Code::INVALID_ARGUMENT, "a mapped allocation of the plan is not in its file");
  }
  if (!digests.empty() && digests.size() != items.size())
    return Status(Code::INVALID_ARGUMENT, "the plan has digests of other items");
  uint32_t batch = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const PlanItem& item = items[i];
    if (item.file >= files.size()) return wrong(i, "there is no such file");
    if (item.allocation >= allocations.size()) return wrong(i, "there is no such allocation");
    uint64_t file_size = files[item.file].expected.size, room = allocations[item.allocation].size;
    if (item.offset > file_size || item.length > file_size - item.offset) return wrong(i, "it ends after its file");
    if (item.strided() && DigestOf(i) != nullptr) return wrong(i, "it has a digest and holes");
    if (item.strided() && item.length > 0) {
      if (item.stride <= item.run || item.length % item.run != 0) return wrong(i, "its runs overlap or are not whole");
      // No product that could overflow: the last run begins at most (room / stride) runs behind the first.
      const uint64_t runs = item.length / item.run, behind = file_size - item.offset;
      if (item.run > behind || runs - 1 > (behind - item.run) / item.stride) return wrong(i, "it ends after its file");
      if (item.converts() && item.run % BytesOf(item.from) != 0) return wrong(i, "a run ends within an element");
    }
    if (item.converts() && !CanConvertFloats(item.from, item.to)) return wrong(i, "there is no such conversion");
    if (item.converts() && item.length % BytesOf(item.from) != 0) return wrong(i, "it ends within an element");
    if (item.converts() && item.length > UINT64_MAX / 8) return wrong(i, "it has more bytes than can be counted");
    if (item.destination > room || item.InMemory(item.length) > room - item.destination)
      return wrong(i, "it ends after its allocation");
    const PlanAllocation& holder = allocations[item.allocation];
    if (holder.is_mapped() && item.length > 0 &&
        (item.file != holder.mapped || item.converts() || item.strided() ||
         item.offset != holder.mapped_offset + item.destination))
      return wrong(i, "it is not where it lies in its mapped file");
    if (BatchOf(i) < batch) return wrong(i, "its batch comes before that of the item before it");
    batch = BatchOf(i);
  }
  return Status::Ok();
}

}  // namespace fst
