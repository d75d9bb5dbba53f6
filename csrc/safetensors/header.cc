#include "safetensors/header.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "safetensors/header_text.h"
#include "safetensors/other_format.h"

namespace fst {

namespace {

unsigned long long Long(uint64_t value) { return value; }

uint64_t ReadLittleEndian64(const uint8_t* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

// Sorts entries, names and dims by offset; most writers already list them so. `end` counts too: an empty tensor goes
// before the one that begins at the same byte.
void SortByOffset(Header* header) {
  auto before = [](const Header::Entry& a, const Header::Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  };
  if (std::is_sorted(header->entries.begin(), header->entries.end(), before)) return;

  std::vector<uint32_t> order(header->entries.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return before(header->entries[a], header->entries[b]); });

  std::vector<Header::Entry> entries;
  std::string names;
  std::vector<uint64_t> dims;
  entries.reserve(order.size());
  names.reserve(header->names.size());
  dims.reserve(header->dims.size());
  for (uint32_t old_index : order) {
    Header::Entry entry = header->entries[old_index];
    std::string_view name = header->NameOf(entry);
    const uint64_t* old_dims = header->DimsOf(entry);
    entry.name_offset = static_cast<uint32_t>(names.size());
    entry.dims_offset = static_cast<uint32_t>(dims.size());
    names += name;
    dims.insert(dims.end(), old_dims, old_dims + entry.rank);
    entries.push_back(entry);
  }
  header->entries = std::move(entries);
  header->names = std::move(names);
  header->dims = std::move(dims);
}

// The entries must be contiguous, from 0 to the file's end.
Status CheckOffsets(const HeaderOptions& options, const std::string& path, Header* header) {
  const std::string label = FileLabel(path);
  const uint64_t capacity = header->size_bytes - header->data_start;
  auto fail = [&](Code code, const Header::Entry& entry, const std::string& problem) {
    std::string name(header->NameOf(entry));
    int64_t offset = static_cast<int64_t>(header->data_start + std::min(entry.begin, kMaxSafeInteger));
    return Status(code, label + ": tensor " + QuoteName(name) + " " + problem).At(path, name, offset);
  };
  uint64_t expected = 0;
  for (const Header::Entry& entry : header->entries) {
    if (entry.begin > entry.end) {
      return fail(
          Code::INVALID_OFFSET, entry,
          Format("has data_offsets [%llu, %llu]: it ends before it begins", Long(entry.begin), Long(entry.end)));
    }
    if (entry.begin != expected) {
      const char* how = entry.begin < expected ? "they overlap" : "there is a gap";
      const char* before =
          &entry == header->entries.data() ? "the first tensor must begin there" : "where the one before it ends";
      return fail(Code::INVALID_OFFSET, entry,
                  Format("begins at byte %llu of the data, expected %llu, %s: %s", Long(entry.begin), Long(expected),
                         before, how));
    }
    expected = entry.end;
  }
  if (expected > capacity) {
    const Header::Entry& cut = *std::find_if(header->entries.begin(), header->entries.end(),
                                             [&](const Header::Entry& entry) { return entry.end > capacity; });
    return fail(Code::METADATA_INCOMPLETE_BUFFER, cut,
                Format("ends at byte %llu, but the %s has %llu: it was cut short", Long(header->data_start + cut.end),
                       path.empty() ? "buffer" : "file", Long(header->size_bytes)));
  }
  header->trailing_bytes = capacity - expected;
  if (header->trailing_bytes != 0 && !options.allow_trailing_bytes) {
    uint64_t end = header->data_start + expected;
    return Status(Code::METADATA_INCOMPLETE_BUFFER, Format("%s: the tensors end at byte %llu, but the %s has %llu; "
                                                           "allowTrailingBytes accepts the %llu bytes behind them",
                                                           label.c_str(), Long(end), path.empty() ? "buffer" : "file",
                                                           Long(header->size_bytes), Long(header->trailing_bytes)))
        .At(path, {}, static_cast<int64_t>(end));
  }
  return Status::Ok();
}

// NOT_SAFETENSORS for a file that is recognised as something else, else `error`, which says that it has no header.
Status ExplainFormat(const uint8_t* bytes, size_t length, uint64_t file_size, const std::string& path,
                     const Status& error) {
  if (file_size < 8) return error;
  const size_t known = std::min(length, kFormatBytes);
  const OtherFormat format = RecognizeFormat(bytes, known, file_size);
  if (*format.name != '\0' && format.name != std::string_view("safetensors")) {
    return Status(Code::NOT_SAFETENSORS, FileLabel(path) + " is " + format.description).At(path, {}, 0);
  }
  const std::string text = BeginningOfText(bytes, known);
  if (text.empty()) return error;
  return Status(error.code(), error.message() + "; it begins with the text " + text).At(path, {}, error.offset());
}

}  // namespace

Status CheckHeaderLength(const uint8_t first8[8], uint64_t file_size, const std::string& path, uint64_t* n) {
  const std::string label = FileLabel(path);
  if (file_size < 8) {
    return Status(Code::HEADER_TOO_SMALL,
                  Format("%s has %llu bytes, expected at least the 8 of the header's length; %s", label.c_str(),
                         Long(file_size),
                         file_size == 0 ? "it is empty: its download or copy failed, get it again"
                                        : "it is no .safetensors file"))
        .At(path, {}, 0);
  }
  *n = ReadLittleEndian64(first8);
  if (*n > kMaxHeaderLength) {
    return Status(Code::HEADER_TOO_LARGE,
                  Format("%s: the header claims %llu bytes, expected at most %llu; it is perhaps no "
                         ".safetensors file",
                         label.c_str(), Long(*n), Long(kMaxHeaderLength)))
        .At(path, {}, 0);
  }
  if (*n > file_size - 8) {
    return Status(Code::INVALID_HEADER_LENGTH,
                  Format("%s: the header ends at byte %llu, but the %s has %llu: it was cut short", label.c_str(),
                         Long(8 + *n), path.empty() ? "buffer" : "file", Long(file_size)))
        .At(path, {}, 0);
  }
  return Status::Ok();
}

Status ParseHeader(const uint8_t* bytes, size_t length, uint64_t file_size, const HeaderOptions& options,
                   const std::string& path, Header* out) {
  *out = Header();
  uint64_t n = 0;
  if (file_size >= 8 && length < 8) {
    return Status(Code::UNEXPECTED_EOF,
                  Format("%s: only %zu bytes of the header could be read", FileLabel(path).c_str(), length))
        .At(path, {}, static_cast<int64_t>(length));
  }
  Status possible = CheckHeaderLength(bytes, file_size, path, &n);
  if (!possible.ok()) return ExplainFormat(bytes, length, file_size, path, possible);
  if (length - 8 < n) {
    return Status(Code::UNEXPECTED_EOF, Format("%s: only %zu of the header's %llu bytes could be read",
                                               FileLabel(path).c_str(), length, Long(8 + n)))
        .At(path, {}, static_cast<int64_t>(length));
  }
  out->header_length = n;
  out->data_start = 8 + n;
  out->size_bytes = file_size;

  std::string_view text(reinterpret_cast<const char*>(bytes) + 8, n);
  auto invalid = [&](size_t at, const std::string& problem) {
    return Status(Code::INVALID_HEADER,
                  Format("%s: invalid header at byte %zu: %s", FileLabel(path).c_str(), 8 + at, problem.c_str()))
        .At(path, {}, static_cast<int64_t>(8 + at));
  };
  if (text.empty()) {
    return ExplainFormat(bytes, length, file_size, path, invalid(0, "its length is 0, expected at least '{}'"));
  }
  if (text[0] != '{') {
    const unsigned first = static_cast<unsigned char>(text[0]);
    return ExplainFormat(bytes, length, file_size, path,
                         invalid(0, Format("its first byte is 0x%02X, expected '{'", first)));
  }
  size_t bad = FindInvalidUtf8(text.data(), text.size());
  if (bad != text.size()) return invalid(bad, "it is not UTF-8");

  FST_RETURN_IF_ERROR(HeaderText(text, path, out).Parse());
  SortByOffset(out);
  return CheckOffsets(options, path, out);
}

std::string QuoteName(std::string_view name) {
  constexpr size_t kShown = 80;
  std::string text = "\"";
  size_t at = 0;
  while (at < name.size() && at < kShown) {
    unsigned char c = static_cast<unsigned char>(name[at]);
    size_t step = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    std::string_view sequence = name.substr(at, step);
    at += step;
    if (c == '"' || c == '\\') {
      text += '\\';
      text += static_cast<char>(c);
    } else if (c < 0x20 || c == 0x7F) {
      text += Format("\\u%04x", c);
    } else if (sequence.size() == 2 && c == 0xC2 && static_cast<unsigned char>(sequence[1]) < 0xA0) {  // C1 controls
      text += Format("\\u%04x", static_cast<unsigned char>(sequence[1]));
    } else if (sequence.size() == 3 && c == 0xE2 && (sequence[1] == '\x80' || sequence[1] == '\x81')) {
      // U+2000 to U+207F: bidirectional controls, line separators
      text += Format("\\u%04x", 0x2000 | (sequence[1] & 0x3F) << 6 | (sequence[2] & 0x3F));
    } else {
      text += sequence;
    }
  }
  text += '"';
  if (at < name.size()) text += Format(" (and %zu bytes more)", name.size() - at);
  return text;
}

}  // namespace fst
