#include "safetensors/packed_header.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "safetensors/sums.h"
#include "safetensors/text_table.h"

namespace fst {
namespace {

// Texts one after the other, and what JavaScript finds them by.
struct Texts {
  std::string all;
  std::vector<uint32_t> lengths;  // bytes
  std::vector<uint32_t> slots;    // of every `step`-th text from the first on

  bool is_long() const { return all.size() > kLongTexts; }

  void MakeSlots(size_t step) {
    std::vector<std::string_view> found;
    found.reserve(lengths.size() / step);
    size_t at = 0;
    for (size_t i = 0; i < lengths.size(); at += lengths[i++]) {
      if (i % step == 0) found.push_back(std::string_view(all).substr(at, lengths[i]));
    }
    slots = TextSlots(found, TextSeed());
  }

  void PutEnds(uint32_t* ends) const {
    if (!is_long()) return TextEnds(all, lengths.data(), lengths.size(), ends);
    uint32_t end = 0;
    for (uint32_t length : lengths) *ends++ = end += length;
  }
};

Texts NamesOf(Header& header) {
  Texts names;
  names.lengths.reserve(header.entries.size());
  for (const Header::Entry& entry : header.entries) names.lengths.push_back(entry.name_length);
  names.all = std::move(header.names);
  names.MakeSlots(1);
  return names;
}

// Key, value, key, value, …
Texts MetadataOf(Header& header) {
  Texts texts;
  texts.lengths.reserve(header.metadata.size() * 2);
  for (const auto& [key, value] : header.metadata) {
    for (const std::string* text : {&key, &value}) {
      texts.all += *text;
      texts.lengths.push_back(static_cast<uint32_t>(text->size()));
    }
  }
  header.metadata = {};
  texts.MakeSlots(2);
  return texts;
}

template <class T>
PackedHeader::Array Reserve(PackedHeader* out, size_t length) {
  PackedHeader::Array array{out->size, length};
  out->size += length * sizeof(T);
  return array;
}

}  // namespace

bool IsAscii(const std::string& text) {
  unsigned char all = 0;
  for (char c : text) all |= static_cast<unsigned char>(c);  // vectorised: no branch
  return all < 0x80;
}

void TextEnds(const std::string& texts, const uint32_t* lengths, size_t count, uint32_t* ends) {
  const bool ascii = IsAscii(texts);
  uint32_t units = 0;
  const char* at = texts.data();
  for (size_t i = 0; i < count; ++i) {
    if (ascii) {
      units += lengths[i];
    } else {
      for (const char* end = at + lengths[i]; at < end; ++at) {
        const auto byte = static_cast<unsigned char>(*at);
        units += (byte & 0xC0) != 0x80;  // one unit a code point
        units += byte >= 0xF0;           // two past U+FFFF
      }
    }
    ends[i] = units;
  }
}

Status PackHeader(Header header, PackedHeader* out) {
  *out = PackedHeader();
  out->header_length = header.header_length;
  out->size_bytes = header.size_bytes;
  out->data_start = header.data_start;
  out->trailing_bytes = header.trailing_bytes;
  out->has_sums = header.has_sums_file || std::any_of(header.metadata.begin(), header.metadata.end(),
                                                      [](const auto& text) { return text.first == kSumsKey; });
  const size_t count = out->count = header.entries.size();
  Texts names = NamesOf(header), metadata = MetadataOf(header);

  // The widest first, so that each is aligned.
  const PackedHeader::Array numbers_first = Reserve<double>(out, PackedHeader::kNumbers);
  out->begins = Reserve<double>(out, count);
  out->ends = Reserve<double>(out, count);
  out->dims = Reserve<double>(out, header.dims.size());
  out->rank_ends = Reserve<uint32_t>(out, count);
  out->name_ends = Reserve<uint32_t>(out, count);
  out->metadata_ends = Reserve<uint32_t>(out, metadata.lengths.size());
  out->name_slots = Reserve<uint32_t>(out, names.slots.size());
  out->metadata_slots = Reserve<uint32_t>(out, metadata.slots.size());
  out->dtypes = Reserve<uint8_t>(out, count);
  if (names.is_long()) out->names = Reserve<uint8_t>(out, names.all.size());
  if (metadata.is_long()) out->metadata = Reserve<uint8_t>(out, metadata.all.size());
  out->block.reset(new (std::nothrow) uint8_t[out->size]);
  if (out->block == nullptr) {
    return Status(Code::OUT_OF_HOST_MEMORY,
                  Format("no memory for a header of %zu tensors, %zu bytes", count, out->size));
  }

  auto at = [out](const PackedHeader::Array& array) { return out->block.get() + array.offset; };
  auto doubles = [&](const PackedHeader::Array& array) { return reinterpret_cast<double*>(at(array)); };
  auto numbers = [&](const PackedHeader::Array& array) { return reinterpret_cast<uint32_t*>(at(array)); };
  uint32_t rank_end = 0;
  for (size_t i = 0; i < count; ++i) {
    const Header::Entry& entry = header.entries[i];
    doubles(out->begins)[i] = static_cast<double>(entry.begin);
    doubles(out->ends)[i] = static_cast<double>(entry.end);
    numbers(out->rank_ends)[i] = rank_end += entry.rank;
    at(out->dtypes)[i] = static_cast<uint8_t>(entry.dtype);
  }
  for (size_t i = 0; i < header.dims.size(); ++i) doubles(out->dims)[i] = static_cast<double>(header.dims[i]);
  names.PutEnds(numbers(out->name_ends));
  metadata.PutEnds(numbers(out->metadata_ends));
  auto copy = [&at](const PackedHeader::Array& to, const void* from, size_t bytes) {
    if (bytes > 0) memcpy(at(to), from, bytes);
  };
  copy(out->name_slots, names.slots.data(), names.slots.size() * sizeof(uint32_t));
  copy(out->metadata_slots, metadata.slots.data(), metadata.slots.size() * sizeof(uint32_t));
  copy(out->names, names.all.data(), out->names.length);
  copy(out->metadata, metadata.all.data(), out->metadata.length);
  double* first = doubles(numbers_first);
  for (uint64_t number : {out->header_length, out->size_bytes, out->data_start, out->trailing_bytes, uint64_t{count},
                          uint64_t{out->has_sums}, uint64_t{TextSeed()}, uint64_t{0}})
    *first++ = static_cast<double>(number);
  for (const PackedHeader::Array& array :
       {out->begins, out->ends, out->dims, out->rank_ends, out->name_ends, out->metadata_ends, out->name_slots,
        out->metadata_slots, out->dtypes, out->names, out->metadata}) {
    *first++ = static_cast<double>(array.offset);
    *first++ = static_cast<double>(array.length);
  }
  if (!names.is_long()) out->short_names = std::move(names.all);
  if (!metadata.is_long()) out->short_metadata = std::move(metadata.all);
  return Status::Ok();
}

}  // namespace fst
