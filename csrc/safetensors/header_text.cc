#include "safetensors/header_text.h"

#include <algorithm>
#include <utility>

namespace fst {

namespace {

constexpr size_t kTextStart = 8;  // of the header's text in the file

std::string ShapeText(const uint64_t* dims, size_t rank) {
  constexpr size_t kShown = 8;
  std::string text = "[";
  for (size_t i = 0; i < rank && i < kShown; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  if (rank > kShown) text += Format(", and %zu more", rank - kShown);
  return text + "]";
}

}  // namespace

std::string FileLabel(const std::string& path) { return path.empty() ? "buffer" : path; }

// An entry's error waits here until the entry's end: errors of syntax and duplicate keys behind it win.
struct HeaderText::Draft {
  Header::Entry entry;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  Code code = Code::kOk;
  std::string problem;

  // UNKNOWN_DTYPE wins over the others; else the first error stays.
  void Fail(Code new_code, std::string text) {
    if (code != Code::kOk && (code == Code::UNKNOWN_DTYPE || new_code != Code::UNKNOWN_DTYPE)) return;
    code = new_code;
    problem = std::move(text);
  }
};

Status HeaderText::Parse() {
  bool metadata_seen = false;
  bool scanned = scanner_.Object([&](std::string_view key) {
    if (key != "__metadata__") return ScanTensor(key);
    if (metadata_seen) return scanner_.FailDuplicate(key);
    metadata_seen = true;
    return ScanMetadata();
  });
  if (!scanned || !scanner_.End()) return TextError();
  return entry_error_;
}

Status HeaderText::TextError() const {
  const size_t offset = kTextStart + scanner_.position();
  const std::string where = current_tensor_.empty() ? "" : ", at tensor " + QuoteName(current_tensor_);
  auto fail = [&](Code code, const std::string& problem) {
    return Status(code, Format("%s: invalid header at byte %zu%s: %s", label_.c_str(), offset, where.c_str(),
                               problem.c_str()))
        .At(path_, current_tensor_, static_cast<int64_t>(offset));
  };
  if (scanner_.error() == JsonScanner::Error::kDuplicateKey) {
    return fail(Code::DUPLICATE_KEY, "key " + QuoteName(scanner_.duplicate_key()) +
                                         " is there already; keys must be unique in their object");
  }
  return fail(Code::INVALID_HEADER, scanner_.what());
}

bool HeaderText::ScanMetadata() {
  if (scanner_.Peek() == 'n') return scanner_.Skip(1);  // null: as the reference implementation reads it
  if (scanner_.Peek() != '{') return scanner_.Fail("__metadata__ must be an object of strings");
  JsonKeys keys;
  return scanner_.Object([&](std::string_view key) {
    if (!keys.Insert(key)) return scanner_.FailDuplicate(key);
    std::string kept(key);  // scanning the value ends the view
    if (scanner_.Peek() != '"') return scanner_.Fail("a value in __metadata__ must be a string");
    std::string_view value;
    if (!scanner_.String(&value)) return false;
    header_.metadata.emplace_back(std::move(kept), value);
    return true;
  });
}

void HeaderText::GrowSlots() {
  size_t count = std::max<size_t>(slots_.size() * 2, 64);
  if (slots_.empty()) {
    header_.entries.reserve(header_.entries.size() + likely_entries_);
    while (count < 2 * likely_entries_) count *= 2;
  }
  std::vector<Slot> slots(count);
  const size_t mask = slots.size() - 1;
  for (const Slot& old : slots_) {
    if (old.index_plus_one == 0) continue;
    size_t at = old.hash & mask;
    while (slots[at].index_plus_one != 0) at = (at + 1) & mask;
    slots[at] = old;
  }
  slots_ = std::move(slots);
}

// The slot that holds `name`, or the free one where it belongs.
HeaderText::Slot& HeaderText::SlotOf(std::string_view name, uint32_t hash) {
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    Slot& slot = slots_[at];
    if (slot.index_plus_one == 0) return slot;
    if (slot.hash == hash && header_.NameOf(header_.entries[slot.index_plus_one - 1]) == name) return slot;
  }
}

// False, with an error of the scanner, when another tensor has this name.
bool HeaderText::AddName(std::string_view name, Header::Entry* entry) {
  if (header_.entries.size() * 2 >= slots_.size()) GrowSlots();
  const uint32_t hash = HashName(name);
  Slot& slot = SlotOf(name, hash);
  if (slot.index_plus_one != 0) return scanner_.FailDuplicate(name);
  slot = {static_cast<uint32_t>(header_.entries.size() + 1), hash};
  entry->name_offset = static_cast<uint32_t>(header_.names.size());  // fits: the text has at most kMaxHeaderLength
  entry->name_length = static_cast<uint32_t>(name.size());
  header_.names += name;
  return true;
}

bool HeaderText::ScanTensor(std::string_view name) {
  Draft draft;
  current_tensor_ = name;
  if (!AddName(name, &draft.entry)) return false;
  size_t start = kTextStart + scanner_.key_position();
  draft.entry.dims_offset = static_cast<uint32_t>(header_.dims.size());
  if (scanner_.Peek() != '{') {
    draft.Fail(Code::TENSOR_INVALID_INFO, "expected an object with dtype, shape and data_offsets");
    if (!scanner_.Skip(1)) return false;
  } else {
    JsonKeys others;
    bool scanned = scanner_.Object([&](std::string_view key) {
      bool* seen = key == "dtype"          ? &draft.has_dtype
                   : key == "shape"        ? &draft.has_shape
                   : key == "data_offsets" ? &draft.has_offsets
                                           : nullptr;
      if (seen == nullptr) return others.Insert(key) ? scanner_.Skip(2) : scanner_.FailDuplicate(key);
      if (*seen) return scanner_.FailDuplicate(key);
      *seen = true;
      return seen == &draft.has_dtype   ? ScanDType(&draft)
             : seen == &draft.has_shape ? ScanShape(&draft)
                                        : ScanOffsets(&draft);
    });
    if (!scanned) return false;
    CheckSize(&draft);
  }
  header_.entries.push_back(draft.entry);
  current_tensor_.clear();
  if (draft.code != Code::kOk && entry_error_.ok()) {
    std::string message = label_ + ": tensor " + QuoteName(header_.NameOf(draft.entry)) + ": " + draft.problem;
    entry_error_ = Status(draft.code, std::move(message))
                       .At(path_, std::string(header_.NameOf(draft.entry)), static_cast<int64_t>(start));
  }
  return true;
}

bool HeaderText::ScanDType(Draft* draft) {
  if (scanner_.Peek() != '"') {
    draft->Fail(Code::TENSOR_INVALID_INFO, "dtype must be a string");
    return scanner_.Skip(2);
  }
  std::string_view text;
  if (!scanner_.String(&text)) return false;
  for (size_t i = 0; i < kDTypeCount; ++i) {
    if (text == kDTypeNames[i]) {
      draft->entry.dtype = static_cast<DType>(i);
      return true;
    }
  }
  std::string known;
  for (const char* dtype : kDTypeNames) known += (known.empty() ? "" : " ") + std::string(dtype);
  draft->Fail(Code::UNKNOWN_DTYPE, "unknown dtype " + QuoteName(text) + ", expected one of " + known);
  return true;
}

bool HeaderText::ScanInteger(uint64_t* out, std::string* reason) {
  *out = 0;
  if (!scanner_.AtNumber()) {
    *reason = "holds what is no number";
    return scanner_.Skip(3);
  }
  std::string_view text;
  if (!scanner_.Number(&text)) return false;
  const auto holds = [&](const char* expected) {
    std::string shown(text.substr(0, 40));
    if (text.size() > shown.size()) shown += "...";
    *reason = "holds " + shown + ", expected " + expected;
    return true;
  };
  uint64_t value = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return holds("plain digits of an integer that is not negative");
    value = value * 10 + static_cast<uint64_t>(c - '0');
    if (value > kMaxSafeInteger) return holds("at most 2^53");
  }
  *out = value;
  return true;
}

bool HeaderText::ScanShape(Draft* draft) {
  if (scanner_.Peek() != '[') {
    draft->Fail(Code::TENSOR_INVALID_INFO, "shape must be an array of integers");
    return scanner_.Skip(2);
  }
  return scanner_.Array([&] {
    uint64_t dim;
    std::string reason;
    if (!ScanInteger(&dim, &reason)) return false;
    if (!reason.empty()) draft->Fail(Code::TENSOR_INVALID_INFO, "shape " + reason);
    header_.dims.push_back(dim);
    ++draft->entry.rank;
    return true;
  });
}

bool HeaderText::ScanOffsets(Draft* draft) {
  if (scanner_.Peek() != '[') {
    draft->Fail(Code::TENSOR_INVALID_INFO, "data_offsets must be an array of two integers");
    return scanner_.Skip(2);
  }
  size_t count = 0;
  bool scanned = scanner_.Array([&] {
    uint64_t value;
    std::string reason;
    if (!ScanInteger(&value, &reason)) return false;
    if (!reason.empty()) draft->Fail(Code::TENSOR_INVALID_INFO, "data_offsets " + reason);
    if (count == 0) draft->entry.begin = value;
    if (count == 1) draft->entry.end = value;
    ++count;
    return true;
  });
  if (scanned && count != 2) {
    draft->Fail(Code::TENSOR_INVALID_INFO, Format("data_offsets has %zu elements, expected [begin, end]", count));
  }
  return scanned;
}

void HeaderText::CheckSize(Draft* draft) const {
  if (draft->code != Code::kOk) return;
  const Header::Entry& entry = draft->entry;
  const char* missing = !draft->has_dtype     ? "dtype"
                        : !draft->has_shape   ? "shape"
                        : !draft->has_offsets ? "data_offsets"
                                              : nullptr;
  if (missing) return draft->Fail(Code::TENSOR_INVALID_INFO, Format("%s is missing", missing));

  const uint64_t* dims = header_.dims.data() + entry.dims_offset;
  const char* dtype = kDTypeNames[static_cast<size_t>(entry.dtype)];
  uint64_t bits = kDTypeBits[static_cast<size_t>(entry.dtype)];
  bool overflow = false;
  uint64_t elements = 1;
  for (uint32_t i = 0; i < entry.rank; ++i) overflow |= __builtin_mul_overflow(elements, dims[i], &elements);
  overflow |= __builtin_mul_overflow(elements, bits, &bits);
  if (overflow) {
    return draft->Fail(Code::TENSOR_INVALID_INFO, Format("shape %s of %s has more bits than 64-bit numbers count",
                                                         ShapeText(dims, entry.rank).c_str(), dtype));
  }
  if (bits % 8 != 0) {
    return draft->Fail(Code::TENSOR_INVALID_INFO,
                       Format("shape %s of %s takes %llu bits, which is no whole number of bytes",
                              ShapeText(dims, entry.rank).c_str(), dtype, static_cast<unsigned long long>(bits)));
  }
  // begin > end is INVALID_OFFSET, which the check of the offsets finds.
  if (entry.begin <= entry.end && entry.end - entry.begin != bits / 8) {
    return draft->Fail(Code::TENSOR_INVALID_INFO,
                       Format("shape %s of %s takes %llu bytes, but data_offsets [%llu, %llu] span %llu",
                              ShapeText(dims, entry.rank).c_str(), dtype, static_cast<unsigned long long>(bits / 8),
                              static_cast<unsigned long long>(entry.begin), static_cast<unsigned long long>(entry.end),
                              static_cast<unsigned long long>(entry.end - entry.begin)));
  }
}

}  // namespace fst
