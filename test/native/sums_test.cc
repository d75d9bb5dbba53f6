#include "safetensors/sums.h"

#include <gtest/gtest.h>

#include <string>

namespace fst {
namespace {

const std::string kDigits(32, 'a');
const std::string kXxh3 = "\"xxh3-128:" + kDigits + "\"", kSha256 = "\"sha256:" + kDigits + kDigits + "\"";

Status Parse(const std::string& text, Sums* out) {
  return ParseSums(reinterpret_cast<const uint8_t*>(text.data()), text.size(), "m.sums.json", out);
}

TEST(SumsTest, KeepsTheDigestOfEachTensor) {
  Sums sums;
  Status status = Parse(R"({"more":[1],"size":128,"header":)" + kSha256 + R"(,"tensors":{"a":)" + kXxh3 +
                            R"(,"b\u0020":)" + kSha256 + "}}",
                        &sums);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(sums.names, "ab ");
  EXPECT_EQ(sums.name_lengths, (std::vector<uint32_t>{1, 2}));
  ASSERT_EQ(sums.digests.size(), 2U);
  EXPECT_EQ(DigestText(sums.digests[0]), "xxh3-128:" + kDigits);
  EXPECT_EQ(DigestText(sums.digests[1]), "sha256:" + kDigits + kDigits);
  EXPECT_EQ(DigestText(sums.header), "sha256:" + kDigits + kDigits);
  EXPECT_EQ(sums.size, 128);
}

TEST(SumsTest, SizeAndHeaderMayBeMissing) {
  Sums sums;
  ASSERT_TRUE(Parse(R"({"tensors":{}})", &sums).ok());
  EXPECT_EQ(sums.size, -1);
  EXPECT_EQ(sums.header.kind, DigestKind::kNone);
}

TEST(SumsTest, RefusesWhatAreNoSums) {
  for (const std::string& text : std::vector<std::string>{
           "", "null", "[]", "{}", "{\"tensors\":[]}", "{\"tensors\":{\"a\":7}}", "{\"tensors\":{\"a\":\"\"}}",
           "{\"tensors\":{\"a\":\"" + kDigits + "\"}}", "{\"tensors\":{\"a\":\"xxh3-128:" + kDigits + "0\"}}",
           "{\"tensors\":{\"a\":\"xxh3-128:g" + kDigits.substr(1) + "\"}}",
           "{\"tensors\":{\"a\":\"md5:" + kDigits + "\"}}", "{\"tensors\":{},\"size\":\"1\"}",
           "{\"tensors\":{},\"header\":1}", "{\"tensors\":{}} x", "{\"tensors\":{\"a\":" + kXxh3 + "}",
           "{\"tensors\":{\"\xff\":" + kXxh3 + "}}"}) {
    Sums sums;
    Status status = Parse(text, &sums);
    EXPECT_EQ(status.code(), Code::CHECKSUM_MISMATCH) << text;
    EXPECT_EQ(status.path(), "m.sums.json");
  }
}

TEST(SumsTest, EqualKeysAreRefusedByName) {
  for (const std::string& text : {"{\"tensors\":{\"a\":" + kXxh3 + ",\"\\u0061\":" + kXxh3 + "}}",
                                  std::string("{\"tensors\":{},\"tensors\":{}}")}) {
    Sums sums;
    Status status = Parse(text, &sums);
    EXPECT_EQ(status.code(), Code::DUPLICATE_KEY) << text;
    EXPECT_NE(status.message().find("is there already"), std::string::npos);
  }
}

}  // namespace
}  // namespace fst
