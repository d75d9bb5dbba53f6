// The trust boundary: bytes that anybody may have written become a Header whose numbers are reliable, or an error.
//
// Checks run in this order, each over the whole header before the next: HEADER_TOO_SMALL, HEADER_TOO_LARGE,
// INVALID_HEADER_LENGTH (NOT_SAFETENSORS in place of the last two, and of a text that does not begin with '{', for a
// file that is recognised as something else: see other_format.h); the text (INVALID_HEADER, DUPLICATE_KEY: whichever
// comes first in it); the entries in the order of the text (UNKNOWN_DTYPE, TENSOR_INVALID_INFO); the offsets
// (INVALID_OFFSET); the end (METADATA_INCOMPLETE_BUFFER). Source of the format: huggingface/safetensors, README
// ("Format") and safetensors/src/tensor.rs (validate).
//
// All functions are pure or touch only the file they are given. Any thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/file_identity.h"
#include "base/header_fd_cache.h"
#include "base/status.h"

namespace fst {

constexpr uint64_t kMaxHeaderLength = 100000000;  // bytes of JSON
// Offsets and dimensions above it do not fit a JavaScript number.
constexpr uint64_t kMaxSafeInteger = uint64_t{1} << 53;

struct HeaderOptions {
  // Accepts bytes after the last tensor's end, counted in Header::trailing_bytes. A file cut short is still refused.
  bool allow_trailing_bytes = false;
  // ReadHeader counts the bytes here that it has read. Not null outlives the call.
  std::atomic<uint64_t>* bytes_read = nullptr;
};

// A checked header. After OK, over all entries i in order:
//   entries[0].begin == 0, entries[i].begin <= entries[i].end == entries[i + 1].begin,
//   entries.back().end == data_size(), data_start + data_size() + trailing_bytes == size_bytes,
//   end - begin == product(dims) * bits(dtype) / 8 without overflow, names are unique and valid UTF-8, all numbers <=
//   2^53.
class Header {
 public:
  struct Entry {
    uint64_t begin = 0;  // bytes from data_start
    uint64_t end = 0;    // bytes from data_start
    uint32_t name_offset = 0, name_length = 0;
    uint32_t dims_offset = 0, rank = 0;
    DType dtype = DType::U8;
  };

  uint64_t header_length = 0;   // n: bytes of JSON, padding included
  uint64_t size_bytes = 0;      // of the whole file
  uint64_t data_start = 0;      // 8 + header_length
  uint64_t trailing_bytes = 0;  // after the last tensor; 0 unless they were allowed
  std::vector<Entry> entries;   // by begin, then end, then order in the text
  std::string names;            // all names in the order of entries, UTF-8 (NUL is possible)
  std::vector<uint64_t> dims;   // all shapes in the order of entries
  std::vector<std::pair<std::string, std::string>> metadata;  // of __metadata__, in the order of the text
  bool has_sums_file = false;                                 // beside the file that was read: see sums.h

  std::string_view NameOf(const Entry& entry) const {
    return std::string_view(names).substr(entry.name_offset, entry.name_length);
  }
  // `rank` numbers, outermost first.
  const uint64_t* DimsOf(const Entry& entry) const { return dims.data() + entry.dims_offset; }
  uint64_t data_size() const { return entries.empty() ? 0 : entries.back().end; }
};

// Checks a file's first 8 bytes against its size: HEADER_TOO_LARGE, INVALID_HEADER_LENGTH (and HEADER_TOO_SMALL when
// file_size < 8, in which case first8 is not read). On OK, *n <= kMaxHeaderLength and 8 + *n <= file_size.
Status CheckHeaderLength(const uint8_t first8[8], uint64_t file_size, const std::string& path, uint64_t* n);

// Checks a whole header. `bytes` starts at the file's first byte and must hold its 8 + n bytes; fewer is
// UNEXPECTED_EOF. Bytes behind them are read only to recognise another format: tensors are checked against `file_size`.
// `path` is for messages; "" when the bytes came from memory. On failure *out is unspecified.
Status ParseHeader(const uint8_t* bytes, size_t length, uint64_t file_size, const HeaderOptions& options,
                   const std::string& path, Header* out);

// Opens, reads and checks a file's header; blocks. Besides ParseHeader's codes: IO_ERROR (also for what is not a
// regular file), UNEXPECTED_EOF, SHORT_READ for a hole in it on 3FS, FILE_CHANGED when the file changed meanwhile,
// INVALID_ARGUMENT for a path that is empty or has a NUL, OUT_OF_HOST_MEMORY. `identity` (may be null) receives the
// file's identity; on OK, `fd_cache` (may be null) keeps its descriptor for reading its data.
Status ReadHeader(const std::string& path, const HeaderOptions& options, Header* out, FileIdentity* identity,
                  HeaderFdCache* fd_cache = nullptr);

// `"name"` for messages: at most 80 bytes of it, control and bidirectional characters escaped, so that a hostile name
// can neither flood nor forge a log line.
std::string QuoteName(std::string_view name);

}  // namespace fst
