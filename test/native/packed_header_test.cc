// Headers as JavaScript gets them: what Header has, and tables in which names are found.
#include "safetensors/packed_header.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "safetensors/text_table.h"

namespace fst {
namespace {

std::string FileOf(const std::string& json) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(json.size() >> (8 * i) & 0xFF);
  return length + json;
}

PackedHeader Pack(const std::string& json, uint64_t data) {
  const std::string file = FileOf(json);
  Header header;
  Status status =
      ParseHeader(reinterpret_cast<const uint8_t*>(file.data()), file.size(), file.size() + data, {}, "m", &header);
  EXPECT_TRUE(status.ok()) << status.message();
  PackedHeader packed;
  EXPECT_TRUE(PackHeader(std::move(header), &packed).ok());
  return packed;
}

template <class T>
std::vector<T> Values(const PackedHeader& packed, const PackedHeader::Array& array) {
  std::vector<T> values(array.length);
  if (!values.empty()) memcpy(values.data(), packed.block.get() + array.offset, values.size() * sizeof(T));
  EXPECT_LE(array.offset + array.length * sizeof(T), packed.size);
  EXPECT_EQ(array.offset % sizeof(T), 0U);
  return values;
}

TEST(PackedHeader, HasWhatTheHeaderHas) {
  const PackedHeader packed =
      Pack(R"({"__metadata__":{"k":"v1","é":""},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
           R"("é🎲":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           28);
  EXPECT_EQ(packed.count, 2U);
  EXPECT_EQ(Values<double>(packed, packed.begins), (std::vector<double>{0, 4}));
  EXPECT_EQ(Values<double>(packed, packed.ends), (std::vector<double>{4, 28}));
  EXPECT_EQ(Values<double>(packed, packed.dims), (std::vector<double>{4, 2, 3}));
  EXPECT_EQ(Values<uint32_t>(packed, packed.rank_ends), (std::vector<uint32_t>{1, 3}));
  EXPECT_EQ(Values<uint8_t>(packed, packed.dtypes),
            (std::vector<uint8_t>{static_cast<uint8_t>(DType::U8), static_cast<uint8_t>(DType::F32)}));
  EXPECT_EQ(packed.short_names, "é🎲b");
  EXPECT_EQ(Values<uint32_t>(packed, packed.name_ends), (std::vector<uint32_t>{3, 4})) << "UTF-16 units";
  EXPECT_EQ(packed.short_metadata, "kv1é");
  EXPECT_EQ(Values<uint32_t>(packed, packed.metadata_ends), (std::vector<uint32_t>{1, 3, 4, 4}));
  EXPECT_EQ(packed.name_slots.length + packed.metadata_slots.length, 0U);
}

TEST(PackedHeader, OfNothingIsEmpty) {
  const PackedHeader packed = Pack("{}", 0);
  EXPECT_EQ(packed.count + packed.begins.length + packed.metadata_ends.length, 0U);
  EXPECT_EQ(packed.size, PackedHeader::kNumbers * sizeof(double));
}

TEST(PackedHeader, BeginsWithItsNumbers) {
  const PackedHeader packed = Pack(R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24);
  const auto numbers = Values<double>(packed, {0, PackedHeader::kIdentity});
  const auto header_length = static_cast<double>(packed.header_length);
  EXPECT_EQ(std::vector<double>(numbers.begin(), numbers.begin() + 6),
            (std::vector<double>{header_length, 8 + header_length + 24, 8 + header_length, 0, 1, 0}));
  EXPECT_EQ(numbers[PackedHeader::kHasIdentity], 0) << "who has read a file fills it in";
  std::vector<double> arrays;
  for (const PackedHeader::Array& array :
       {packed.begins, packed.ends, packed.dims, packed.rank_ends, packed.name_ends, packed.metadata_ends,
        packed.name_slots, packed.metadata_slots, packed.dtypes, packed.names, packed.metadata})
    arrays.insert(arrays.end(), {static_cast<double>(array.offset), static_cast<double>(array.length)});
  EXPECT_EQ(std::vector<double>(numbers.begin() + PackedHeader::kArrays, numbers.end()), arrays);
  EXPECT_EQ(packed.begins.offset, PackedHeader::kNumbers * sizeof(double));
}

TEST(PackedHeader, FindsManyNamesAndKeys) {
  constexpr size_t kCount = 3000;
  std::string metadata, tensors;
  for (size_t i = 0; i < kCount; ++i) {
    const std::string number = std::to_string(i);
    metadata += (i ? "," : "") + ("\"k" + number + "\":\"a value of some length " + number + "\"");
    tensors += ",\"layer." + number + ".重み\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
  }
  const PackedHeader packed = Pack("{\"__metadata__\":{" + metadata + "}" + tensors + "}", 0);
  EXPECT_TRUE(packed.short_metadata.empty()) << "long texts are bytes";

  const auto check = [&](const PackedHeader::Array& slots, const std::string& texts, const std::vector<uint32_t>& ends,
                         size_t step) {
    const auto values = Values<uint32_t>(packed, slots);
    ASSERT_GE(values.size(), 2 * kCount);
    ASSERT_EQ(values.size() & (values.size() - 1), 0U);
    for (size_t i = 0; i < kCount; ++i) {
      const size_t text = i * step, begin = text == 0 ? 0 : ends[text - 1];
      const std::string wanted = texts.substr(begin, ends[text] - begin);
      size_t at = HashText(wanted, TextSeed()) & (values.size() - 1);
      while (values[at] != 0 && values[at] != i + 1) at = (at + 1) & (values.size() - 1);
      ASSERT_EQ(values[at], i + 1) << wanted;
    }
  };
  const auto bytes = [&](const PackedHeader::Array& array) {
    return std::string(reinterpret_cast<const char*>(packed.block.get()) + array.offset, array.length);
  };
  ASSERT_GT(packed.names.length + packed.short_names.size(), 0U);
  std::vector<uint32_t> ends;
  std::string names;
  for (size_t i = 0; i < kCount; ++i)
    ends.push_back(static_cast<uint32_t>((names += "layer." + std::to_string(i) + ".重み").size()));
  check(packed.name_slots, names, ends, 1);
  check(packed.metadata_slots, bytes(packed.metadata), Values<uint32_t>(packed, packed.metadata_ends), 2);
}

TEST(TextTable, HasNoSlotsForFewTextsNorForThoseThatMeet) {
  std::vector<std::string_view> texts(kTextsWithoutTable, "a");
  EXPECT_TRUE(TextSlots(texts, 1).empty());
  texts.emplace_back("b");
  EXPECT_TRUE(TextSlots(texts, 1).empty()) << "1024 of them are equal, and so have one hash";
}

}  // namespace
}  // namespace fst
