#include "device/strided_copy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "device/host_memory.h"

namespace fst {
namespace {

// A copy by the device costs microseconds, whatever its length: so many cost no more than one part through the host.
constexpr uint64_t kFewRuns = 256;
constexpr uint64_t kLongRun = 256 << 10;  // the device copies runs of this length, however many there are
constexpr uint64_t kPartBytes = 32 << 20;

__extension__ using Wide = __int128;

// Bytes [begin, end) that a copy touches on one side.
struct Span {
  Wide begin, end;
  uint64_t size() const { return static_cast<uint64_t>(end - begin); }
};

Span SpanOf(const StridedCopy& copy, uint64_t offset, int64_t StridedCopy::Dim::*stride) {
  Span span{offset, Wide{offset} + copy.run};
  for (const StridedCopy::Dim& dim : copy.dims) {
    const Wide reach = Wide{dim.*stride} * (Wide{dim.count} - 1);
    (reach < 0 ? span.begin : span.end) += reach;
  }
  return span;
}
Span SourceSpan(const StridedCopy& copy) { return SpanOf(copy, copy.source_offset, &StridedCopy::Dim::source_stride); }
Span DestinationSpan(const StridedCopy& copy) {
  return SpanOf(copy, copy.destination_offset, &StridedCopy::Dim::destination_stride);
}

// With a constant length the compiler inlines memcpy.
template <size_t kRun>
void CopyRowOf(const StridedCopy::Dim& dim, size_t run, const char* source, char* destination) {
  for (uint64_t i = 0; i < dim.count; ++i) {
    memcpy(destination, source, kRun > 0 ? kRun : run);
    source += dim.source_stride;
    destination += dim.destination_stride;
  }
}

void CopyFrom(const StridedCopy& copy, size_t dim, const char* source, char* destination) {
  if (dim == copy.dims.size()) return CopyRow({1, 0, 0}, copy.run, source, destination);
  const StridedCopy::Dim& here = copy.dims[dim];
  if (dim + 1 == copy.dims.size()) return CopyRow(here, copy.run, source, destination);
  for (uint64_t i = 0; i < here.count; ++i) {
    CopyFrom(copy, dim + 1, source, destination);
    source += here.source_stride;
    destination += here.destination_stride;
  }
}

uint64_t RunsOf(const StridedCopy& copy) {
  uint64_t runs = 1;
  for (const StridedCopy::Dim& dim : copy.dims) runs *= dim.count;  // <= the destination's bytes
  return runs;
}

struct HostBytes {
  ~HostBytes() {
    if (memory != nullptr) FreeHost(memory, size);
  }
  Status Allocate(size_t bytes) {
    FST_RETURN_IF_ERROR(AllocateHost(bytes, &memory));
    size = bytes;
    return Status::Ok();
  }
  char* data() const { return static_cast<char*>(memory); }
  void* memory = nullptr;
  size_t size = 0;
};

Status CopyByDevice(const StridedCopy& copy, const DeviceBuffer& source, const DeviceBuffer& destination) {
  std::vector<CopyRegion> regions{{copy.source_offset, copy.destination_offset, copy.run}};
  for (const StridedCopy::Dim& dim : copy.dims) {
    std::vector<CopyRegion> more;
    more.reserve(regions.size() * dim.count);
    for (const CopyRegion& region : regions) {
      for (uint64_t i = 0; i < dim.count; ++i) {
        more.push_back({region.source_offset + i * static_cast<uint64_t>(dim.source_stride),
                        region.destination_offset + i * static_cast<uint64_t>(dim.destination_stride), region.length});
      }
    }
    regions = std::move(more);
  }
  return source.device().Copy(source, destination, regions.data(), regions.size());
}

// Halves the copy until a part fits into kPartBytes.
Status CopyThroughHost(StridedCopy copy, const DeviceBuffer& source, const DeviceBuffer& destination) {
  const Span from = SourceSpan(copy), to = DestinationSpan(copy);
  while (!copy.dims.empty() && copy.dims[0].count == 1) copy.dims.erase(copy.dims.begin());
  if (copy.dims.empty() || copy.run >= kLongRun) {
    if (RunsOf(copy) <= kFewRuns) return CopyByDevice(copy, source, destination);
  } else if (from.size() <= kPartBytes && to.size() <= kPartBytes) {
    HostBytes read, written;
    FST_RETURN_IF_ERROR(read.Allocate(from.size()));
    FST_RETURN_IF_ERROR(written.Allocate(to.size()));
    const auto source_begin = static_cast<size_t>(from.begin), destination_begin = static_cast<size_t>(to.begin);
    FST_RETURN_IF_ERROR(source.device().Read(source, source_begin, read.size, read.memory));
    // Keeps the bytes between the runs.
    if (RunsOf(copy) * copy.run < written.size)
      FST_RETURN_IF_ERROR(destination.device().Read(destination, destination_begin, written.size, written.memory));
    copy.source_offset -= source_begin;
    copy.destination_offset -= destination_begin;
    CopyRuns(copy, read.data(), written.data());
    return destination.device().Write(destination, destination_begin, written.size, written.memory);
  }
  StridedCopy rest = copy;
  const uint64_t half = copy.dims[0].count / 2;
  copy.dims[0].count = half;
  rest.dims[0].count -= half;
  rest.source_offset += half * static_cast<uint64_t>(rest.dims[0].source_stride);
  rest.destination_offset += half * static_cast<uint64_t>(rest.dims[0].destination_stride);
  FST_RETURN_IF_ERROR(CopyThroughHost(std::move(copy), source, destination));
  return CopyThroughHost(std::move(rest), source, destination);
}

}  // namespace

Status StridedCopy::Validate(uint64_t source_size, uint64_t destination_size) const {
  Status wrong(Code::INVALID_ARGUMENT, "a strided copy leaves its memory");
  if (run == 0 || run > source_size || source_offset > source_size || destination_offset > destination_size)
    return wrong;
  uint64_t runs = 1;
  for (const Dim& dim : dims) {
    if (dim.count == 0 || dim.count > destination_size / runs) return wrong;
    runs *= dim.count;
  }
  const Span from = SourceSpan(*this), to = DestinationSpan(*this);
  if (from.begin < 0 || from.end > Wide{source_size} || to.begin < 0 || to.end > Wide{destination_size}) return wrong;
  return Status::Ok();
}

void CopyRow(const StridedCopy::Dim& dim, size_t run, const char* source, char* destination) {
  switch (run) {
    case 1:
      return CopyRowOf<1>(dim, run, source, destination);
    case 2:
      return CopyRowOf<2>(dim, run, source, destination);
    case 4:
      return CopyRowOf<4>(dim, run, source, destination);
    case 8:
      return CopyRowOf<8>(dim, run, source, destination);
    case 16:
      return CopyRowOf<16>(dim, run, source, destination);
    case 64:
      return CopyRowOf<64>(dim, run, source, destination);
    default:
      return CopyRowOf<0>(dim, run, source, destination);
  }
}

void CopyRuns(const StridedCopy& copy, const char* source, char* destination) {
  CopyFrom(copy, 0, source + copy.source_offset, destination + copy.destination_offset);
}

Status CopyStrided(const StridedCopy& copy, const DeviceBuffer& source, const DeviceBuffer& destination) {
  FST_RETURN_IF_ERROR(copy.Validate(source.size(), destination.size()));
  if (source.device().host_accessible() && destination.device().host_accessible()) {
    CopyRuns(copy, reinterpret_cast<const char*>(source.address()), reinterpret_cast<char*>(destination.address()));
    return Status::Ok();
  }
  if (RunsOf(copy) <= kFewRuns) return CopyByDevice(copy, source, destination);
  return CopyThroughHost(copy, source, destination);
}

}  // namespace fst
