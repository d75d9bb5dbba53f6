// Errors of system calls on files.
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

// IO_ERROR about `path`: "<what>: <the errno's text>", and what to do where that is known. THREEFS_DISCONNECTED where
// `path` is on a 3FS whose daemon is gone, or was on one that is not mounted any more.
Status IoError(const std::string& path, const std::string& what, int error);

// Whether an errno says that no descriptor is left.
bool OutOfDescriptors(int error);

// What to do about that, for the end of a message: names the limit. "" for any other errno.
std::string DescriptorRemedy(int error);

}  // namespace fst
