// What a file is that is not what a reader expected: people have pointers, error pages and weights of other formats
// under every name. Guessed from the first bytes, for messages; nothing is decided by it but which error is told.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace fst {

// The bytes to look at; fewer are enough for all but zeros.
constexpr size_t kFormatBytes = 64 * 1024;

struct OtherFormat {
  const char* name = "";    // "git-lfs", "html", "onnx", …; "" for what is not recognised
  std::string description;  // "a Git LFS pointer instead of the file itself; run `git lfs pull` …", after "it is"
};

// `bytes` are the first `length` of `file_size`. Pure. Any thread.
OtherFormat RecognizeFormat(const uint8_t* bytes, size_t length, uint64_t file_size);

// What a file begins with, if that is text: `"Not Found"`, cut short; "" otherwise.
std::string BeginningOfText(const uint8_t* bytes, size_t length);

}  // namespace fst
