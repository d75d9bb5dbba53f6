// What a transfer has to do, in the order in which tensors should be ready. Made by src/transfer/plan.ts, checked by
// Validate before the engine gets it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/dtype.h"
#include "base/file_identity.h"
#include "base/status.h"
#include "convert/float_convert.h"

namespace fst {

struct PlanFile {
  std::string path;
  FileIdentity expected;  // from when the header was read
};

struct PlanAllocation {
  static constexpr uint32_t kNone = UINT32_MAX;
  uint64_t size;               // bytes; 0 if it holds empty tensors only
  uint32_t batch;              // the window allows allocations batch by batch
  uint32_t mapped = kNone;     // the file that it is a view of, where that is mapped
  uint64_t mapped_offset = 0;  // where in that file it begins: a multiple of 4096

  bool is_mapped() const { return mapped != kNone; }
};

// One tensor, or a part of one.
struct PlanItem {
  uint32_t file;
  uint32_t allocation;
  uint64_t offset;                         // of its first byte in the file
  uint64_t length;                         // bytes in the file, may be 0
  uint64_t destination;                    // its first byte in the allocation; a multiple of 256 for a whole tensor
  DType from = DType::U8, to = DType::U8;  // different: elements are converted on the way
  // With `run` > 0 the bytes are runs of so many, `stride` > `run` bytes from one's first byte to the next one's, which
  // follow each other in memory: what a range of an inner dimension is. 0: they lie together.
  uint64_t run = 0, stride = 0;

  bool strided() const { return run > 0; }
  // Where byte `done` < length of the item lies in the file.
  uint64_t OffsetOf(uint64_t done) const { return offset + (strided() ? done / run * stride + done % run : done); }
  // Bytes from `done` < length on that lie together in the file.
  uint64_t Together(uint64_t done) const { return strided() ? run - done % run : length - done; }
  // Bytes between two runs; UINT64_MAX for an item that has one.
  uint64_t hole() const { return strided() ? stride - run : UINT64_MAX; }

  bool converts() const { return from != to; }
  // Bytes in memory for `bytes` in the file; whole elements if the item converts.
  uint64_t InMemory(uint64_t bytes) const { return converts() ? bytes / BytesOf(from) * BytesOf(to) : bytes; }
};

struct Plan {
  std::vector<PlanFile> files;
  std::vector<PlanAllocation> allocations;
  std::vector<PlanItem> items;
  // By item: what its bytes in the file must have. Empty where none has any.
  std::vector<Digest> digests;
  // What lies between two items is another plan's to read: no read includes it.
  bool apart = false;

  // On OK: every index is in range, batches do not decrease from item to item, items lie inside their files and
  // allocations, those of a mapped one where they lie in its file, items have whole runs, and those that convert have
  // whole elements in each run and a conversion that exists. Those with a digest lie together. INVALID_ARGUMENT
  // otherwise.
  Status Validate() const;

  bool Converts() const {
    return std::any_of(items.begin(), items.end(), [](const PlanItem& item) { return item.converts(); });
  }

  // Null for an item without a digest.
  const Digest* DigestOf(size_t item) const {
    return digests.empty() || digests[item].kind == DigestKind::kNone ? nullptr : &digests[item];
  }

  uint32_t BatchOf(size_t item) const { return allocations[items[item].allocation].batch; }
};

}  // namespace fst
