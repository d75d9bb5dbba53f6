// RecognizeFormat, and what a header's reader makes of it. test/other-formats.test.ts has the same at all entries.
#include "safetensors/other_format.h"

#include <gtest/gtest.h>

#include <string>

#include "safetensors/header.h"

namespace fst {
namespace {

using std::string_literals::operator""s;

std::string NameOf(const std::string& bytes) {
  return RecognizeFormat(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), bytes.size()).name;
}

Status Parse(const std::string& bytes) {
  Header header;
  return ParseHeader(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), bytes.size(), {}, "f", &header);
}

std::string Zip(const std::string& name) {
  return "PK\x03\x04"s + std::string(22, '\0') + static_cast<char>(name.size()) + std::string(3, '\0') + name + "data";
}

TEST(OtherFormat, IsRecognised) {
  const std::string rest(300, 'x');
  const std::pair<std::string, const char*> kFiles[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "git-lfs"},
      {"<!DOCTYPE html><html>", "html"},
      {"\n  <html lang=\"en\">", "html"},
      {"\xEF\xBB\xBF<HTML><body>", "html"},
      {"<?xml version=\"1.0\"?><Error>", "xml"},
      {"<Error><Code>AccessDenied</Code>", "xml"},
      {"{\"error\":\"Entry not found\"}", "json"},
      {"{\n  \"error\": 1\n}         ", "json"},
      {Zip("archive/data.pkl"), "pytorch"},
      {Zip("weight.npy"), "npz"},
      {Zip("readme.txt"), "zip"},
      {"\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9" + rest, "pickle"},
      {"\x80\x04\x95" + rest, "pickle"},
      {"\x1F\x8B\x08\x00"s + rest, "gzip"},
      {"\x28\xB5\x2F\xFD" + rest, "zstd"},
      {"GGUF\x03\x00\x00\x00"s + rest, "gguf"},
      {"\x89HDF\r\n\x1A\n" + rest, "hdf5"},
      {"\x93NUMPY\x01\x00"s + rest, "npy"},
      {"\x08\x07\x12\x07pytorch\x1A\x05"s + rest, "onnx"},
      {"\x18\x00\x00\x00TFL3"s + rest, "tflite"},
      {"\x18\x00\x00\x00ORTM"s + rest, "ort"},
      {std::string(257, 'a') + "ustar" + rest, "tar"},
      {std::string(32, '\0'), "zeros"},
      {std::string(100000, '\0'), "zeros"},
  };
  for (const auto& [bytes, name] : kFiles) {
    EXPECT_EQ(NameOf(bytes), name);
    const Status status = Parse(bytes);
    EXPECT_EQ(CodeName(status.code()), std::string("NOT_SAFETENSORS")) << name << ": " << status.message();
    EXPECT_EQ(status.message().rfind("f is ", 0), 0u) << status.message();
  }
}

TEST(OtherFormat, OfAnEmptyOrShortFileKeepsItsCode) {
  EXPECT_EQ(NameOf(""), "empty");
  EXPECT_EQ(Parse("").code(), Code::HEADER_TOO_SMALL);
  EXPECT_NE(Parse("").message().find("empty"), std::string::npos);
  EXPECT_EQ(Parse("PK\x03\x04").code(), Code::HEADER_TOO_SMALL);
  for (size_t zeros : {8, 31}) EXPECT_EQ(Parse(std::string(zeros, '\0')).code(), Code::INVALID_HEADER);
}

TEST(OtherFormat, IsNotSeenInAHeader) {
  // The length of a header may be the beginning of anything; the header itself begins with a brace.
  for (const std::string& magic : {"\x80\x02"s, "\x1F\x8B\x08"s, "BZh"s, "\x08\x07\x12"s}) {
    std::string file = magic + std::string(8 - magic.size(), '\0');
    EXPECT_EQ(Parse(file + "{").code(), Code::INVALID_HEADER_LENGTH);
    EXPECT_EQ(NameOf(file + "{\"w\":"), "safetensors");
  }
  EXPECT_EQ(Parse("\x80\x02\0\0\0\0\0\0"s).code(), Code::INVALID_HEADER_LENGTH);
}

TEST(OtherFormat, TextThatIsNoPageIsShownAndKeepsItsCode) {
  const Status status = Parse("Entry not found");
  EXPECT_EQ(status.code(), Code::HEADER_TOO_LARGE);
  EXPECT_NE(status.message().find("begins with the text \"Entry not found\""), std::string::npos) << status.message();
  EXPECT_EQ(NameOf("Entry not found"), "");
}

TEST(OtherFormat, IsLookedForInsideTheBytesOnly) {
  const std::string whole[] = {Zip("archive/data.pkl"), std::string(257, 'a') + "ustar", "\xEF\xBB\xBF<!DOCTYPE html>",
                               "{\"error\": 1}", "\x08\x07\x12\x07pytorch"};
  for (const std::string& bytes : whole) {
    for (size_t length = 0; length <= bytes.size(); ++length) {
      const std::string part(bytes, 0, length);  // its own allocation: sanitizers see a step past its end
      NameOf(part);
      BeginningOfText(reinterpret_cast<const uint8_t*>(part.data()), part.size());
    }
  }
}

}  // namespace
}  // namespace fst
