#include "base/status.h"

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fst {

const char* CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
#define X(name)    \
  case Code::name: \
    return #name;
      FST_ERROR_CODES(X)
#undef X
  }
  return "UNKNOWN";
}

namespace {

// Never destroyed: threads outlive main().
const std::string& Empty() {
  static const auto* empty = new std::string;
  return *empty;
}

}  // namespace

const std::string& Status::message() const { return state_ ? state_->message : Empty(); }
const std::string& Status::path() const { return state_ ? state_->path : Empty(); }
const std::string& Status::tensor() const { return state_ ? state_->tensor : Empty(); }

Status Status::At(const std::string& path, const std::string& tensor, int64_t offset) const {
  if (ok()) return *this;
  auto state = std::make_shared<State>(*state_);
  if (state->path.empty()) state->path = path;
  if (state->tensor.empty()) state->tensor = tensor;
  if (state->offset < 0) state->offset = offset;
  Status placed;
  placed.state_ = std::move(state);
  return placed;
}

// For the errors of files, memory and threads; strerrorname_np needs glibc 2.32.
const char* ErrnoName(int error) {
  switch (error) {
#define X(name) \
  case name:    \
    return #name;
    X(EPERM)
    X(ENOENT)
    X(EINTR)
    X(EIO)
    X(ENXIO)
    X(EBADF)
    X(EAGAIN)
    X(ENOMEM)
    X(EACCES)
    X(EFAULT)
    X(EBUSY)
    X(EEXIST)
    X(ENODEV)
    X(ENOTDIR)
    X(EISDIR)
    X(EINVAL)
    X(ENFILE)
    X(EMFILE)
    X(EFBIG)
    X(ENOSPC)
    X(ESPIPE)
    X(EROFS)
    X(EPIPE)
    X(ENAMETOOLONG)
    X(ENOSYS)
    X(ELOOP)
    X(EOVERFLOW)
    X(ENOTSUP)
    X(ENOTCONN)
    X(ECONNABORTED)
    X(ECANCELED)
    X(ETIMEDOUT)
    X(ECONNREFUSED)
    X(ESTALE)
    X(EDQUOT)
    X(EREMOTEIO)
#undef X
    default:
      return "";
  }
}

namespace {

// strerror_r() is of two kinds: glibc's returns the text, the one of POSIX (musl's) fills the buffer.
[[maybe_unused]] const char* TextOf(const char* text, const char*) { return text; }
[[maybe_unused]] const char* TextOf(int, const char* buffer) { return buffer; }

}  // namespace

std::string ErrnoText(int error) {
  char buffer[128] = "";
  const char* text = TextOf(strerror_r(error, buffer, sizeof buffer), buffer);
  const char* name = ErrnoName(error);
  return *name != '\0' ? Format("%s (%s)", text, name) : Format("%s (errno %d)", text, error);
}

std::string Format(const char* format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int length = vsnprintf(nullptr, 0, format, args);
  va_end(args);
  std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  return text;
}

}  // namespace fst
