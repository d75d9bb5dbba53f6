// The result of everything in the core that can fail: a code of the public table, a message that says expected, found,
// where and what to do, and the place (file, tensor, offset). The core never throws.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace fst {

// The public error codes. src/base/errors.ts holds the same list, and test/errors.test.ts compares the two. Laid out by
// hand: clang-format does not settle on a layout of such a list.
// clang-format off
#define FST_ERROR_CODES(X)                                                                                   \
  X(HEADER_TOO_SMALL) X(HEADER_TOO_LARGE) X(INVALID_HEADER_LENGTH) X(INVALID_HEADER) X(DUPLICATE_KEY)        \
  X(UNKNOWN_DTYPE) X(INVALID_OFFSET) X(TENSOR_INVALID_INFO) X(METADATA_INCOMPLETE_BUFFER) X(UNEXPECTED_EOF)  \
  X(SHORT_READ) X(IO_ERROR) X(FILE_CHANGED) X(UNKNOWN_TENSOR) X(DUPLICATE_TENSOR) X(MISSING_SHARD)           \
  X(UNSAFE_SHARD_PATH) X(INVALID_INDEX) X(NO_FILES) X(UNKNOWN_COPIER) X(COPIER_UNAVAILABLE)                  \
  X(DEVICE_UNAVAILABLE) X(PLATFORM_UNSUPPORTED) X(OUT_OF_DEVICE_MEMORY) X(OUT_OF_HOST_MEMORY)                \
  X(BUDGET_INFEASIBLE) X(CUDA_ERROR) X(GDS_ERROR) X(NOT_3FS) X(THREEFS_DISCONNECTED) X(THREEFS_ERROR)        \
  X(STALLED) X(TIMEOUT) X(CHECKSUM_MISMATCH) X(UNSUPPORTED_DTYPE) X(CLOSED) X(INVALID_ARGUMENT)              \
  X(ORT_ERROR) X(NOT_SAFETENSORS) X(ADDON_MISSING)
// clang-format on

enum class Code : uint8_t {
  kOk = 0,
#define X(name) name,
  FST_ERROR_CODES(X)
#undef X
};

// The public name of a code ("SHORT_READ"); "OK" for kOk.
const char* CodeName(Code code);

// Copyable, one pointer wide; an OK status allocates nothing. Const methods are safe from several threads.
class [[nodiscard]] Status {
 public:
  Status() = default;
  // `os_error`: the errno of the system call that failed.
  Status(Code code, std::string message, int os_error = 0)
      : state_(std::make_shared<State>(State{code, std::move(message), {}, {}, -1, os_error})) {}

  static Status Ok() { return {}; }

  bool ok() const { return state_ == nullptr; }
  Code code() const { return state_ ? state_->code : Code::kOk; }
  const std::string& message() const;
  const std::string& path() const;                                 // "" for an error about no file
  const std::string& tensor() const;                               // "" for an error about no tensor
  int64_t offset() const { return state_ ? state_->offset : -1; }  // bytes from the file's start; -1: none
  int os_error() const { return state_ ? state_->os_error : 0; }   // an errno; 0: it was no system call

  // A copy of this status with each part of the place that it does not have yet. OK stays OK.
  Status At(const std::string& path, const std::string& tensor = {}, int64_t offset = -1) const;

 private:
  struct State {
    Code code;
    std::string message, path, tensor;
    int64_t offset;
    int os_error;
  };
  std::shared_ptr<const State> state_;
};

// "Input/output error (EIO)" for an errno.
std::string ErrnoText(int error);
// "EIO"; "" for one that is not in the list.
const char* ErrnoName(int error);

// printf into a std::string.
std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));

#define FST_RETURN_IF_ERROR(expr)              \
  do {                                         \
    ::fst::Status fst_status_ = (expr);        \
    if (!fst_status_.ok()) return fst_status_; \
  } while (0)

}  // namespace fst
