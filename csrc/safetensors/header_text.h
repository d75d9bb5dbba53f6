// Scans a header's text into entries: the part of ParseHeader that is about JSON. Internal to csrc/safetensors.
#pragma once
#include <string>
#include <string_view>

#include "safetensors/header.h"
#include "safetensors/json.h"

namespace fst {

// How messages name the file: its path as it was given, or "buffer".
std::string FileLabel(const std::string& path);

class HeaderText {
 public:
  // `text` is valid UTF-8 and starts at the file's byte 8. Appends to *out, in the order of the text.
  HeaderText(std::string_view text, const std::string& path, Header* out)
      : scanner_(text.data(), text.size()),
        path_(path),
        label_(FileLabel(path)),
        likely_entries_(text.size() / kLikelyEntry),
        header_(*out) {}

  // INVALID_HEADER or DUPLICATE_KEY if there is one anywhere, else the first entry's error (UNKNOWN_DTYPE,
  // TENSOR_INVALID_INFO) in the order of the text. On OK, an entry with begin <= end has the size of its shape; its
  // offsets are not checked otherwise.
  Status Parse();

 private:
  static constexpr size_t kLikelyEntry = 96;  // bytes of text
  struct Draft;                               // one entry while it is scanned
  struct Slot {
    uint32_t index_plus_one = 0;  // of the entry; 0: free
    uint32_t hash = 0;            // of its name; the low bits are where the search begins
  };

  bool ScanMetadata();
  bool ScanTensor(std::string_view name);
  bool ScanDType(Draft* draft);
  bool ScanShape(Draft* draft);
  bool ScanOffsets(Draft* draft);
  // Reads a value into *out; *reason says why it is no integer of 0 to 2^53, if so. False on an error of the scanner.
  bool ScanInteger(uint64_t* out, std::string* reason);
  bool AddName(std::string_view name, Header::Entry* entry);
  Slot& SlotOf(std::string_view name, uint32_t hash);
  void GrowSlots();
  void CheckSize(Draft* draft) const;
  Status TextError() const;

  JsonScanner scanner_;
  const std::string& path_;
  const std::string label_;
  const size_t likely_entries_;
  Header& header_;
  std::vector<Slot> slots_;     // the names so far, by open addressing: a power of two of slots, at most half full
  Status entry_error_;          // the first
  std::string current_tensor_;  // the one being scanned, for messages; empty between tensors
};

}  // namespace fst
