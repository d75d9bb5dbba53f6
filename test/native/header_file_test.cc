// ReadHeader: what the file system adds to the table of header_test.cc.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/metrics.h"
#include "safetensors/header.h"

namespace fst {
namespace {

const std::string kEntry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";

std::string BytesOfFile(const std::string& text, size_t data) {
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text + std::string(data, '\0');
}

class HeaderFile : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/fst-header-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/m.safetensors";
  }
  void TearDown() override {
    unlink(path_.c_str());
    rmdir(folder_.c_str());
    EXPECT_EQ(OpenFiles(), 0);
  }
  static int64_t OpenFiles() { return Metrics::Get().open_files.load(); }
  void Write(const std::string& bytes) {
    FILE* file = fopen(path_.c_str(), "wb");
    ASSERT_NE(file, nullptr);
    ASSERT_EQ(fwrite(bytes.data(), 1, bytes.size(), file), bytes.size());
    ASSERT_EQ(fclose(file), 0);
  }
  Status Read(Header* header = nullptr, FileIdentity* identity = nullptr) {
    Header own;
    return ReadHeader(path_, {}, header ? header : &own, identity);
  }
  std::string folder_, path_;
};

TEST_F(HeaderFile, IsReadWithItsIdentity) {
  Write(BytesOfFile("{\"w\":" + kEntry + "}", 4));
  Header header;
  FileIdentity identity;
  ASSERT_TRUE(Read(&header, &identity).ok());
  EXPECT_EQ(header.names, "w");
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(identity.ino, info.st_ino);
  EXPECT_EQ(identity.size, static_cast<uint64_t>(info.st_size));
  EXPECT_EQ(identity.mtime_ns % 1000000000, info.st_mtim.tv_nsec);
}

TEST_F(HeaderFile, IsReadWholeWhenItIsLongerThanOneRead) {
  std::string text = "{";
  for (int i = 0; i < 3000; ++i) {
    text += (i ? ",\"tensor." : "\"tensor.") + std::to_string(i) +
            "\":" + R"({"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(i) + "," + std::to_string(i + 1) +
            "]}";
  }
  ASSERT_GT(text.size(), 128u * 1024);
  Write(BytesOfFile(text + "}", 3000));
  Header header;
  Status status = Read(&header);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(header.entries.size(), 3000u);
}

TEST_F(HeaderFile, ThatIsNoneHasATypedError) {
  EXPECT_EQ(Read().code(), Code::IO_ERROR);  // missing
  EXPECT_NE(Read().message().find("ENOENT"), std::string::npos);
  Write("");
  EXPECT_EQ(Read().code(), Code::HEADER_TOO_SMALL);
  Write("{}");
  EXPECT_EQ(Read().code(), Code::HEADER_TOO_SMALL);
  Header header;
  EXPECT_EQ(ReadHeader(folder_, {}, &header, nullptr).code(), Code::IO_ERROR);
  EXPECT_EQ(ReadHeader("", {}, &header, nullptr).code(), Code::INVALID_ARGUMENT);
  EXPECT_EQ(ReadHeader(std::string("a\0b", 3), {}, &header, nullptr).code(), Code::INVALID_ARGUMENT);
}

TEST_F(HeaderFile, ThatIsAFifoIsRefusedAndNotWaitedFor) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(Read().code(), Code::IO_ERROR);
}

TEST_F(HeaderFile, IdentityTellsWhatMoved) {
  FileIdentity a;
  a.dev = 1, a.ino = 2, a.size = 3, a.mtime_ns = 4;
  FileIdentity b = a;
  EXPECT_TRUE(a.CheckSame(b, "p").ok());
  b.size = 5;
  EXPECT_EQ(a.CheckSame(b, "p").code(), Code::FILE_CHANGED);
  EXPECT_NE(a.CheckSame(b, "p").message().find("from 3 to 5 bytes"), std::string::npos);
  b = a, b.mtime_ns = 5;
  EXPECT_EQ(a.CheckSame(b, "p").code(), Code::FILE_CHANGED);
  b = a, b.ino = 5;
  EXPECT_NE(a.CheckSame(b, "p").message().find("replaced"), std::string::npos);
}

}  // namespace
}  // namespace fst
