#include "safetensors/shard_index.h"

#include <gtest/gtest.h>

#include <string>

namespace fst {
namespace {

Status Parse(const std::string& text, ShardIndex* out) {
  return ParseShardIndex(reinterpret_cast<const uint8_t*>(text.data()), text.size(), "dir/index.json", out);
}

TEST(ShardIndexTest, KeepsWhichFileHasWhichTensor) {
  ShardIndex index;
  Status status = Parse(
      R"( {"x":[{"y":1}],"metadata":{"total_size":12e1,"more":null},"weight_map":{"a":"1","b\u0020c":"2","":"1"}} )",
      &index);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(index.names, "ab c");
  EXPECT_EQ(index.name_lengths, (std::vector<uint32_t>{1, 3, 0}));
  EXPECT_EQ(index.shards, (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(index.shard_of, (std::vector<uint32_t>{0, 1, 0}));
  EXPECT_EQ(index.total_size, 120);
}

TEST(ShardIndexTest, ToleratesMetadataOfAnyKind) {
  for (const char* metadata : {"null", "7", "[]", "{}", R"({"total_size":"much"})", R"({"total_size":{"a":1}})"}) {
    ShardIndex index;
    EXPECT_TRUE(Parse(std::string(R"({"weight_map":{"a":"1"},"metadata":)") + metadata + "}", &index).ok()) << metadata;
    EXPECT_EQ(index.total_size, -1);
  }
}

TEST(ShardIndexTest, FindsANameThatIsThereTwiceAmongMany) {
  constexpr int kNames = 20'000;
  std::string map = "\"\":\"0\"";
  for (int i = 0; i < kNames; ++i) map += ",\"w" + std::to_string(i) + "\":\"" + std::to_string(i % 3) + "\"";
  ShardIndex index;
  ASSERT_TRUE(Parse("{\"weight_map\":{" + map + "}}", &index).ok());
  EXPECT_EQ(index.shard_of.size(), kNames + 1U);
  for (const std::string& twice : {std::string(), std::string("w0"), "w" + std::to_string(kNames - 1)}) {
    Status status = Parse("{\"weight_map\":{" + map + ",\"" + twice + "\":\"1\"}}", &index);
    EXPECT_EQ(status.code(), Code::INVALID_INDEX);
    EXPECT_EQ(status.tensor(), twice);
  }
}

TEST(ShardIndexTest, RefusesWhatIsNoIndex) {
  for (const std::string& text : std::vector<std::string>{
           "",
           "null",
           "[]",
           "{}",
           "{",
           R"({"weight_map":)",
           R"({"weight_map":[]})",
           R"({"weight_map":{"a":1}})",
           R"({"weight_map":{"a":null}})",
           R"({"weight_map":{"a":"1"}} x)",
           R"({"weight_map":{"a":"1"},})",
           R"({"weight_map":{"a":"1","a":"1"}})",
           R"({"weight_map":{"a":"1","\u0061":"2"}})",
           R"({"weight_map":{"a":"1"},"weight_map":{"a":"1"}})",
           R"({"weight_map":{"a":"1"},"metadata":{"total_size":1,"total_size":1}})",
           R"({"weight_map":{"a":"1"},"x":{"b":1,"b":2}})",
           "{\"weight_map\":{\"a\xff\":\"1\"}}",
           "\xef\xbb\xbf{\"weight_map\":{\"a\":\"1\"}}",
           R"({"weight_map":{"a":"1"},"x":)" + std::string(100000, '['),
       }) {
    ShardIndex index;
    Status status = Parse(text, &index);
    EXPECT_EQ(status.code(), Code::INVALID_INDEX) << text.substr(0, 60);
    EXPECT_EQ(status.path(), "dir/index.json");
  }
}

TEST(ShardIndexTest, NamesTheTensorThatIsThereTwice) {
  ShardIndex index;
  Status status = Parse(R"({"weight_map":{"h.0":"1","h.1":"1","h.0":"2"}})", &index);
  EXPECT_EQ(status.tensor(), "h.0");
  EXPECT_NE(status.message().find("\"h.0\" is there already"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace fst
