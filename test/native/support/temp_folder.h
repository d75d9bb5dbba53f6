// A folder of its own for a test, gone with it.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "base/file_identity.h"

namespace fst {

inline FileIdentity IdentityOf(const std::string& path) {
  FileIdentity identity;
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_GE(fd, 0) << path;
  if (fd >= 0) {
    EXPECT_TRUE(FileIdentity::Of(fd, path, &identity).ok());
    close(fd);
  }
  return identity;
}

class TempFolder {
 public:
  explicit TempFolder(const std::string& under = "/tmp") {
    std::string pattern = under + "/fst-test-XXXXXX";
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
    EXPECT_FALSE(path_.empty()) << under << " takes no folder";
  }
  ~TempFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string Path(const std::string& name) const { return path_ + "/" + name; }

  std::string Write(const std::string& name, const std::string& bytes) const {
    std::string path = Path(name);
    int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    EXPECT_GE(fd, 0) << path;
    size_t done = 0;
    while (fd >= 0 && done < bytes.size()) {
      ssize_t put = write(fd, bytes.data() + done, bytes.size() - done);
      if (put <= 0) break;
      done += static_cast<size_t>(put);
    }
    EXPECT_EQ(done, bytes.size()) << path;
    if (fd >= 0) close(fd);
    return path;
  }

 private:
  std::string path_;
};

}  // namespace fst
