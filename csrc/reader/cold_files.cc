#include "reader/cold_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

#include "base/fd.h"
#include "base/file_system.h"
#include "base/private_mapping.h"

namespace fst {
namespace {

constexpr size_t kLookedAt = 16;            // files
constexpr double kHardlyResident = 1 / 8.;  // of their pages

// Which part of the wanted bytes is in memory; 1 where it is better read through the page cache anyway.
double ResidentPart(const WantedFile& file) {
  UniqueFd fd(open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat st;
  FileSystemTraits traits;
  if (!fd.valid() || fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) return 1;
  if (FileSystemOf(fd.get(), &traits) != 0 || !traits.on_disk) return 1;
  const uint64_t end = std::min(file.end, static_cast<uint64_t>(st.st_size));
  std::unique_ptr<PrivateMapping> mapping;
  if (file.begin >= end || PrivateMapping::Create(fd.get(), {file.begin, end}, &mapping) != 0) return 1;
  return mapping->Resident({file.begin, end});
}

}  // namespace

bool AreCold(const std::vector<WantedFile>& files) {
  const size_t count = std::min(files.size(), kLookedAt);
  double resident = 0;
  for (size_t i = 0; i < count; ++i) resident += ResidentPart(files[i * files.size() / count]);
  return count > 0 && resident <= kHardlyResident * static_cast<double>(count);
}

}  // namespace fst
