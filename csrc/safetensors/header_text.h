// Scans a header's text into entries, the part of ParseHeader that is about JSON. Internal to csrc/safetensors.
#pragma once
#include <string>
#include <string_view>

#include "safetensors/header.h"
#include "safetensors/json.h"

namespace fst {

// What messages call the file: its path as it was given, or "buffer".
std::string FileLabel(const std::string& path);

// Keyed by a secret of this process, so that nobody can write a file whose names all meet in one slot.
uint32_t HashName(std::string_view name);

// The slot of Header::slots that holds `name`, or the free one where it belongs. There must be slots.
size_t FindSlot(const Header& header, std::string_view name, uint32_t hash);

class HeaderText {
 public:
  // `text` is valid UTF-8 and starts at the file's byte 8. Appends to *out, in the order of the text.
  HeaderText(std::string_view text, const std::string& path, Header* out)
      : scanner_(text.data(), text.size()), path_(path), label_(FileLabel(path)), header_(*out) {}

  // INVALID_HEADER and DUPLICATE_KEY first, then the first entry's error (UNKNOWN_DTYPE, TENSOR_INVALID_INFO) in the
  // order of the text. On OK each entry has its size right if begin <= end; ranges are not looked at otherwise.
  Status Parse();

 private:
  struct Draft;  // one entry while it is scanned

  bool ScanMetadata();
  bool ScanTensor(std::string_view name);
  bool ScanDType(Draft* draft);
  bool ScanShape(Draft* draft);
  bool ScanOffsets(Draft* draft);
  // Any number into *out; *reason says why it is none of ours. False only on an error of the scanner.
  bool ScanInteger(uint64_t* out, std::string* reason);
  bool AddName(std::string_view name, Header::Entry* entry);
  void CheckSize(Draft* draft) const;
  Status TextError() const;

  JsonScanner scanner_;
  const std::string& path_;
  const std::string label_;
  Header& header_;
  Status entry_error_;          // the first
  std::string current_tensor_;  // the one being scanned, for messages; empty between tensors
};

}  // namespace fst
