// Any bytes are either refused or become a header that keeps the promises of csrc/safetensors/header.h.
// The first byte chooses the options, the rest is the file.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "safetensors/header.h"

#define FST_CHECK(condition)   \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  fst::HeaderOptions options;
  options.allow_trailing_bytes = (data[0] & 1) != 0;
  ++data, --size;
  // Mostly a text of the right length, so that the fuzzer needs not find the length first.
  std::string file(reinterpret_cast<const char*>(data), size);
  if ((data[-1] & 2) == 0 && size >= 8) {
    uint64_t n = size - 8 - (static_cast<uint64_t>(data[0]) % (size - 7));
    memcpy(file.data(), &n, sizeof n);
  }

  fst::Header header;
  fst::Status status =
      fst::ParseHeader(reinterpret_cast<const uint8_t*>(file.data()), file.size(), file.size(), options, "f", &header);
  if (!status.ok()) {
    FST_CHECK(!status.message().empty() && status.path() == "f");
    return 0;
  }
  FST_CHECK(header.size_bytes == size && header.data_start == 8 + header.header_length && header.data_start <= size);
  FST_CHECK(header.data_start + header.data_size() + header.trailing_bytes == size);
  FST_CHECK(options.allow_trailing_bytes || header.trailing_bytes == 0);
  uint64_t expected = 0;
  std::set<std::string> names;
  for (const fst::Header::Entry& entry : header.entries) {
    FST_CHECK(entry.begin == expected && entry.begin <= entry.end);
    expected = entry.end;
    unsigned __int128 bits = fst::kDTypeBits[static_cast<size_t>(entry.dtype)];
    for (uint32_t i = 0; i < entry.rank; ++i) {
      FST_CHECK(header.DimsOf(entry)[i] <= fst::kMaxSafeInteger);
      bits *= header.DimsOf(entry)[i];
    }
    FST_CHECK(bits == static_cast<unsigned __int128>(entry.end - entry.begin) * 8);
    FST_CHECK(names.emplace(header.NameOf(entry)).second);
  }
  return 0;
}
