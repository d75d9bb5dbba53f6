// Whether a file has data, or only a size.
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

// *out: the file is not empty, and all of it surely is a hole. Where a file system does not tell its holes, it is not.
// Blocks. IO_ERROR when the file cannot be opened.
Status IsHole(const std::string& path, bool* out);

}  // namespace fst
