#include "safetensors/header.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace fst {
namespace {

std::string LittleEndian(uint64_t n) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i) & 0xFF);
  return bytes;
}

// A file: the length, the text as it is, then `data` zero bytes.
std::string File(const std::string& text, size_t data = 0) {
  return LittleEndian(text.size()) + text + std::string(data, '\0');
}

Status Parse(const std::string& file, Header* header = nullptr, HeaderOptions options = {}, uint64_t file_size = 0) {
  Header own;
  // A copy of the exact size on the heap, so that the address sanitizer sees a read behind its end.
  std::vector<uint8_t> bytes(file.begin(), file.end());
  return ParseHeader(bytes.data(), bytes.size(), file_size ? file_size : bytes.size(), options, "dir/model.safetensors",
                     header ? header : &own);
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

struct HeaderCase {
  std::string name;
  Code code;
  std::string file;
};
std::ostream& operator<<(std::ostream& out, const HeaderCase& c) { return out << c.name; }

const std::string kF32 = Entry("F32", "[1]", "[0,4]");  // 4 bytes of data
const std::string kHead = R"("dtype":"U8","shape":[4],"data_offsets":[0,4])";

std::string Nested(const std::string& open, const std::string& close, int depth) {
  std::string text = R"({"w":{)" + kHead + R"(,"x":)";
  for (int i = 0; i < depth; ++i) text += open;
  text += "1";
  for (int i = 0; i < depth; ++i) text += close;
  return text + "}}";
}

std::vector<HeaderCase> Cases() {
  const Code ok = Code::kOk, text = Code::INVALID_HEADER, duplicate = Code::DUPLICATE_KEY,
             info = Code::TENSOR_INVALID_INFO, offset = Code::INVALID_OFFSET,
             incomplete = Code::METADATA_INCOMPLETE_BUFFER;
  auto w = [](const std::string& entry) { return File("{\"w\":" + entry + "}", 4); };
  auto two = [](const std::string& a, const std::string& b, size_t data) {
    return File(R"({"a":)" + Entry("U8", "[4]", a) + R"(,"b":)" + Entry("U8", "[4]", b) + "}", data);
  };
  auto shape = [&](const std::string& s) { return w(Entry("U8", s, "[0,4]")); };
  auto offsets = [&](const std::string& s) { return w(Entry("U8", "[4]", s)); };
  return {
      // length
      {"EmptyFile", Code::HEADER_TOO_SMALL, ""},
      {"SevenBytes", Code::HEADER_TOO_SMALL, std::string(7, '\0')},
      {"LengthZero", text, File("")},
      {"LengthZeroBeforeData", text, File("", 16)},
      {"LengthOverTheCap", Code::HEADER_TOO_LARGE, LittleEndian(kMaxHeaderLength + 1) + "{}"},
      {"LengthAtTheCapButOverTheFile", Code::INVALID_HEADER_LENGTH, LittleEndian(kMaxHeaderLength) + "{}"},
      {"LengthOneOverTheFile", Code::INVALID_HEADER_LENGTH, LittleEndian(3) + "{}"},
      {"LengthTwoToThe64MinusOne", Code::HEADER_TOO_LARGE, LittleEndian(~uint64_t{0}) + "{}"},
      {"LengthTwoToThe64MinusEight", Code::HEADER_TOO_LARGE, LittleEndian(~uint64_t{7}) + "{}"},
      {"HeaderCutShort", Code::INVALID_HEADER_LENGTH, w(kF32).substr(0, 30)},
      {"OnlyTheLength", Code::INVALID_HEADER_LENGTH, LittleEndian(2)},
      // header text
      {"NotUtf8", text, File("{\"\xFF\":1}")},
      {"OverlongUtf8", text, File("{\"\xC0\xAF\":1}")},
      {"Utf8Surrogate", text, File("{\"\xED\xA0\x80\":1}")},
      {"Utf8PastUnicode", text, File("{\"\xF4\x90\x80\x80\":1}")},
      {"Utf8Truncated", text, File("{\"\xE2\x82")},
      {"NotJson", text, File("{weights}")},
      {"Unfinished", text, File("{\"w\":")},
      {"FirstByteIsASpace", text, File(" {}")},
      {"FirstByteIsANewline", text, File("\n{}")},
      {"FirstByteIsABracket", text, File("[]")},
      {"FirstBytesAreAByteOrderMark", text, File("\xEF\xBB\xBF{}")},
      {"TrailingText", text, File("{} x")},
      {"ASecondValue", text, File("{}{}")},
      {"TrailingNul", text, File(std::string("{}\0", 3))},
      {"TrailingSpacesAreFine", ok, File("{}      ")},
      {"SpacesBetweenTokensAreFine", ok,
       File("{ \"w\" :\t{ \"dtype\" : \"U8\" ,\r\n \"shape\" : [ ] , \"data_offsets\" : [ 0 , 1 ] } }", 1)},
      {"DeepArrays", text, File(Nested("[", "]", 100000), 4)},
      {"DeepObjects", text, File(Nested("{\"a\":", "}", 100000), 4)},
      {"NestingOfSomeLevelsIsFine", ok, File(Nested("[", "]", 60), 4)},
      {"TrailingComma", text, File("{\"w\":" + kF32 + ",}", 4)},
      {"SingleQuotes", text, File("{'w':1}")},
      {"Comment", text, File("{}//")},
      {"ControlCharacterInAString", text, File("{\"a\nb\":" + kF32 + "}", 4)},
      {"UnknownEscape", text, File("{\"\\x41\":" + kF32 + "}", 4)},
      {"LoneHighSurrogateEscape", text, File("{\"\\ud83d\":" + kF32 + "}", 4)},
      {"LoneLowSurrogateEscape", text, File("{\"\\ude00\":" + kF32 + "}", 4)},
      {"SurrogateEscapesInTheWrongOrder", text, File("{\"\\ud83d\\u0041\":" + kF32 + "}", 4)},
      {"NaN", text, File("{\"w\":{" + kHead + ",\"x\":NaN}}", 4)},
      // keys
      {"DuplicateAtTheTop", duplicate, File("{\"w\":" + kF32 + ",\"w\":" + kF32 + "}", 4)},
      {"DuplicateAtTheTopThroughAnEscape", duplicate, File("{\"w\":" + kF32 + ",\"\\u0077\":" + kF32 + "}", 4)},
      {"DuplicateMetadataKey", duplicate, File(R"({"__metadata__":{},"__metadata__":{}})")},
      {"DuplicateMetadataKeyThroughAnEscape", duplicate, File(R"({"__metadata__":{},"__metadata\u005f_":{}})")},
      {"DuplicateInAnEntry", duplicate, File("{\"w\":{" + kHead + ",\"dtype\":\"U8\"}}", 4)},
      {"DuplicateInAnEntryThroughAnEscape", duplicate, File("{\"w\":{" + kHead + ",\"\\u0073hape\":[4]}}", 4)},
      {"DuplicateOffsetsInAnEntry", duplicate, File("{\"w\":{" + kHead + ",\"data_offsets\":[0,4]}}", 4)},
      {"DuplicateUnknownFieldInAnEntry", duplicate, File("{\"w\":{" + kHead + ",\"x\":1,\"x\":1}}", 4)},
      {"DuplicateDeepInAnUnknownField", duplicate, File("{\"w\":{" + kHead + ",\"x\":[{\"a\":1,\"\\u0061\":2}]}}", 4)},
      {"DuplicateInMetadata", duplicate, File(R"({"__metadata__":{"a":"1","a":"1"}})")},
      {"DuplicateInMetadataThroughAnEscape", duplicate, File(R"({"__metadata__":{"a":"1","\u0061":"1"}})")},
      {"DuplicateGoesBeforeTheEntries", duplicate, File("{\"w\":{\"dtype\":\"X\"},\"v\":1,\"v\":1}")},
      {"PrototypeNames", ok,
       File(R"({"__proto__":)" + Entry("U8", "[1]", "[0,1]") + R"(,"constructor":)" + Entry("U8", "[1]", "[1,2]") +
                R"(,"toString":)" + Entry("U8", "[1]", "[2,3]") + R"(,"":)" + Entry("U8", "[1]", "[3,4]") + "}",
            4)},
      {"EqualKeysInDifferentObjects", ok, File("{\"shape\":" + kF32 + ",\"__metadata__\":{\"shape\":\"\"}}", 4)},
      // __metadata__
      {"MetadataIsAnArray", text, File(R"({"__metadata__":[]})")},
      {"MetadataIsNull", ok, File(R"({"__metadata__":null})")},
      {"MetadataIsNullBeforeATensor", ok, File("{\"__metadata__\":null,\"w\":" + kF32 + "}", 4)},
      {"MetadataIsAnotherWord", text, File(R"({"__metadata__":nil})")},
      {"MetadataIsNullAndThereAgain", duplicate, File(R"({"__metadata__":null,"__metadata__":{}})")},
      {"MetadataIsAString", text, File(R"({"__metadata__":"x"})")},
      {"MetadataValueIsANumber", text, File(R"({"__metadata__":{"a":1}})")},
      {"MetadataValueIsNull", text, File(R"({"__metadata__":{"a":null}})")},
      {"MetadataValueIsAnObject", text, File(R"({"__metadata__":{"a":{}}})")},
      {"MetadataEmpty", ok, File(R"({"__metadata__":{}})")},
      // entry
      {"EntryIsANumber", info, w("1")},
      {"EntryIsNull", info, w("null")},
      {"EntryIsAnArray", info, w("[]")},
      {"EntryIsEmpty", info, w("{}")},
      {"DtypeMissing", info, w(R"({"shape":[4],"data_offsets":[0,4]})")},
      {"ShapeMissing", info, w(R"({"dtype":"U8","data_offsets":[0,4]})")},
      {"OffsetsMissing", info, w(R"({"dtype":"U8","shape":[4]})")},
      {"DtypeUnknown", Code::UNKNOWN_DTYPE, w(Entry("F33", "[4]", "[0,4]"))},
      {"DtypeAuto", Code::UNKNOWN_DTYPE, w(Entry("AUTO", "[4]", "[0,4]"))},
      {"DtypeInLowerCase", Code::UNKNOWN_DTYPE, w(Entry("f32", "[1]", "[0,4]"))},
      {"DtypeEmpty", Code::UNKNOWN_DTYPE, w(Entry("", "[4]", "[0,4]"))},
      {"DtypeWithANul", Code::UNKNOWN_DTYPE, w(Entry("F32\\u0000", "[1]", "[0,4]"))},
      {"DtypeUnknownGoesBeforeTheShape", Code::UNKNOWN_DTYPE, w(R"({"shape":-1,"dtype":"X","data_offsets":[0,4]})")},
      {"DtypeIsANumber", info, w(R"({"dtype":8,"shape":[4],"data_offsets":[0,4]})")},
      {"ShapeIsANumber", info, shape("4")},
      {"ShapeIsAnObject", info, shape("{}")},
      {"ShapeHoldsAString", info, shape("[\"4\"]")},
      {"ShapeHoldsAnArray", info, shape("[[4]]")},
      {"ShapeHoldsABoolean", info, shape("[4,true]")},
      {"ShapeNegative", info, shape("[-4]")},
      {"ShapeTwiceNegative", info, shape("[-2,-2]")},
      {"ShapeMinusZero", info, w(Entry("U8", "[-0]", "[0,0]"))},
      {"ShapeFractional", info, shape("[4.0]")},
      {"ShapeWithAnExponent", info, shape("[4e0]")},
      {"ShapeOver2To53", info, shape("[9007199254740993]")},
      {"ShapeOver2To64", info, shape("[18446744073709551620]")},
      {"ShapeOf400Digits", info, shape("[" + std::string(400, '9') + "]")},
      {"ShapeWithALeadingZero", text, shape("[04]")},
      {"ShapeWithAPlus", text, shape("[+4]")},
      {"ShapeInHexadecimal", text, shape("[0x4]")},
      {"OffsetsAreAnObject", info, offsets("{}")},
      {"OffsetsAreEmpty", info, offsets("[]")},
      {"OneOffset", info, offsets("[0]")},
      {"ThreeOffsets", info, offsets("[0,4,8]")},
      {"OffsetIsAString", info, offsets("[\"0\",4]")},
      {"OffsetNegative", info, offsets("[-4,0]")},
      {"OffsetFractional", info, offsets("[0,4.0]")},
      {"OffsetWithAnExponent", info, offsets("[0,4e0]")},
      {"OffsetWithALeadingZero", text, offsets("[00,4]")},
      {"OffsetOver2To53", info, offsets("[9007199254740993,9007199254740997]")},
      {"OffsetOver2To64", info, offsets("[0,18446744073709551620]")},
      {"UnknownFields", ok,
       File("{\"w\":{" + kHead + R"(,"a":null,"b":[true,false,-1.5e+3,{"c":"\ud83d\ude00\"\\\/\b\f\n\r\t"}],"d":{}}})",
            4)},
      {"UnknownFieldIsNoJson", text, File("{\"w\":{" + kHead + ",\"x\":tru}}", 4)},
      // offsets
      {"BeginAfterEnd", offset, offsets("[4,0]")},
      {"FirstIsNotZero", offset, File("{\"w\":" + Entry("U8", "[4]", "[4,8]") + "}", 8)},
      {"Gap", offset, two("[0,4]", "[5,9]", 9)},
      {"Overlap", offset, two("[0,4]", "[3,7]", 7)},
      {"SameRangeTwice", offset, two("[0,4]", "[0,4]", 4)},
      {"OutsideTheFile", incomplete, File("{\"w\":" + Entry("U8", "[4000000000000]", "[0,4000000000000]") + "}", 4)},
      {"DataCutShort", incomplete, File("{\"w\":" + kF32 + "}", 3)},
      {"NoData", incomplete, File("{\"w\":" + kF32 + "}", 0)},
      {"TrailingBytes", incomplete, File("{\"w\":" + kF32 + "}", 5)},
      {"TrailingBytesBehindNoTensors", incomplete, File("{}", 1)},
      {"EntriesGoBeforeOffsets", info,
       File("{\"a\":" + Entry("U8", "[4]", "[4,0]") + ",\"b\":" + Entry("U8", "[3]", "[0,4]") + "}", 4)},
      // size
      {"ShapeTooLargeForItsSpan", info, w(Entry("F32", "[2]", "[0,4]"))},
      {"ShapeTooSmallForItsSpan", info, w(Entry("U8", "[3]", "[0,4]"))},
      {"ProductOverflow", info, w(Entry("U8", "[4294967296,4294967296]", "[0,0]"))},
      {"ProductOverflowWrapsToTheSpan", info, w(Entry("U8", "[4294967297,4294967296,4294967296,4]", "[0,4]"))},
      {"BitsOverflow", info, w(Entry("F64", "[4503599627370496,64]", "[0,0]"))},
      {"SubByteMisaligned", info, File("{\"w\":" + Entry("F4", "[3]", "[0,1]") + "}", 1)},
      {"SubByteMisalignedRoundedUp", info, File("{\"w\":" + Entry("F4", "[3]", "[0,2]") + "}", 2)},
      {"SixBitsMisaligned", info, File("{\"w\":" + Entry("F6_E2M3", "[2]", "[0,2]") + "}", 2)},
      // accept
      {"Scalar", ok, File("{\"w\":" + Entry("F32", "[]", "[0,4]") + "}", 4)},
      {"ZeroDimension", ok, File("{\"w\":" + Entry("F32", "[3,0,5]", "[0,0]") + "}")},
      {"NoTensors", ok, File("{}")},
      {"OffsetOrderDiffersFromTextOrder", ok, two("[4,8]", "[0,4]", 8)},
      {"EmptyTensorBehindTheOneThatBeginsThere", ok,
       File("{\"a\":" + Entry("U8", "[4]", "[0,4]") + ",\"b\":" + Entry("U8", "[0]", "[0,0]") + "}", 4)},
      {"Rank20", ok, File("{\"w\":" + Entry("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2,2]", "[0,4]") + "}", 4)},
      {"UnicodeNames", ok,
       File("{\"\xE9\x87\x8D\xE3\x81\xBF\":" + Entry("U8", "[2]", "[0,2]") +
                ",\"\\ud83d\\ude00\\u0000\":" + Entry("U8", "[2]", "[2,4]") + "}",
            4)},
      {"EscapedFieldsAndDtype", ok, w(R"({"\u0064type":"\u0046\u00332","shape":[1],"data_offsets":[0,4]})")},
      {"SubBytePair", ok, File("{\"w\":" + Entry("F4", "[2]", "[0,1]") + "}", 1)},
      {"FourOfSixBits", ok, File("{\"w\":" + Entry("F6_E3M2", "[4]", "[0,3]") + "}", 3)},
  };
}

class HeaderTable : public ::testing::TestWithParam<HeaderCase> {};

TEST_P(HeaderTable, HasItsCode) {
  Status status = Parse(GetParam().file);
  EXPECT_STREQ(CodeName(status.code()), CodeName(GetParam().code)) << status.message();
  if (!status.ok()) {
    EXPECT_EQ(status.path(), "dir/model.safetensors");
    EXPECT_EQ(status.message().rfind("dir/model.safetensors", 0), 0u) << status.message();
    EXPECT_LT(status.message().size(), 600u);
  }
}
INSTANTIATE_TEST_SUITE_P(Table, HeaderTable, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

TEST(Header, HoldsWhatTheTextSays) {
  std::string text = R"({"__metadata__":{"format":"pt","k\n":""},"b":)" + Entry("F32", "[2,1]", "[2,10]") + R"(,"a":)" +
                     Entry("BF16", "[]", "[0,2]") + R"(,"empty":)" + Entry("I64", "[0,7]", "[2,2]") + "}  ";
  Header header;
  ASSERT_TRUE(Parse(File(text, 10), &header).ok());
  EXPECT_EQ(header.header_length, text.size());
  EXPECT_EQ(header.data_start, 8 + text.size());
  EXPECT_EQ(header.size_bytes, 18 + text.size());
  EXPECT_EQ(header.trailing_bytes, 0u);
  EXPECT_EQ(header.names, "aemptyb");
  EXPECT_EQ(header.dims, (std::vector<uint64_t>{0, 7, 2, 1}));
  ASSERT_EQ(header.entries.size(), 3u);
  const Header::Entry& b = header.entries[2];
  EXPECT_EQ(header.NameOf(b), "b");
  EXPECT_EQ(b.dtype, DType::F32);
  EXPECT_EQ(b.rank, 2u);
  EXPECT_EQ(header.DimsOf(b)[0], 2u);
  EXPECT_EQ(b.begin, 2u);
  EXPECT_EQ(b.end, 10u);
  EXPECT_EQ(header.metadata, (std::vector<std::pair<std::string, std::string>>{{"format", "pt"}, {"k\n", ""}}));
}

// The entry of that name, or null.
const Header::Entry* Find(const Header& header, std::string_view name) {
  auto found = std::find_if(header.entries.begin(), header.entries.end(),
                            [&](const Header::Entry& entry) { return header.NameOf(entry) == name; });
  return found == header.entries.end() ? nullptr : &*found;
}

TEST(Header, HasEveryNameAndNoOther) {
  std::string text = "{";
  constexpr int kCount = 5000;
  for (int i = kCount - 1; i >= 0; --i) {  // against the order of the offsets
    text += (text.size() > 1 ? ",\"t" : "\"t") + std::to_string(i) +
            "\":" + Entry("U8", "[1]", "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]");
  }
  Header header;
  ASSERT_TRUE(Parse(File(text + "}", kCount), &header).ok());
  for (int i = 0; i < kCount; ++i) {
    const Header::Entry* entry = Find(header, "t" + std::to_string(i));
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry, &header.entries[i]);
    EXPECT_EQ(entry->begin, static_cast<uint64_t>(i));
  }
  EXPECT_EQ(Find(header, "t5000"), nullptr);
  EXPECT_EQ(Find(header, ""), nullptr);
  EXPECT_EQ(Find(Header(), "t0"), nullptr);
}

TEST(Header, SeesEveryNameASecondTimeAmongMany) {
  constexpr int kCount = 1000;
  std::string text = "{";
  for (int i = 0; i < kCount; ++i) {
    text += "\"t" + std::to_string(i) +
            "\":" + Entry("U8", "[1]", "[" + std::to_string(i) + "," + std::to_string(i + 1) + "]") + ",";
  }
  for (int i = 0; i < kCount; i += 7) {
    Header header;
    Status status = Parse(
        File(text + "\"t" + std::to_string(i) + "\":" + Entry("U8", "[0]", "[1000,1000]") + "}", kCount), &header);
    EXPECT_EQ(status.code(), Code::DUPLICATE_KEY) << i;
  }
}

TEST(Header, DecodesEscapesInNames) {
  Header header;
  ASSERT_TRUE(Parse(File("{\"\\ud83d\\ude00\\u0000\\u00e9\\\"\":" + kF32 + "}", 4), &header).ok());
  EXPECT_NE(Find(header, std::string_view("\xF0\x9F\x98\x80\0\xC3\xA9\"", 8)), nullptr);
}

// Strings are scanned eight bytes at a time where nothing is special: each special byte counts at every place of such a
// step.
TEST(Header, SeesSpecialBytesAnywhereInALongName) {
  for (size_t at = 0; at < 24; ++at) {
    auto file = [&](const std::string& special) {
      std::string name(32, 'n');
      name.replace(at, 1, special);
      return File("{\"" + name + "\":" + kF32 + "}", 4);
    };
    EXPECT_EQ(Parse(file("\n")).code(), Code::INVALID_HEADER) << at;
    EXPECT_EQ(Parse(file("\x1f")).code(), Code::INVALID_HEADER) << at;
    EXPECT_EQ(Parse(file("\"")).code(), Code::INVALID_HEADER) << at;
    EXPECT_EQ(Parse(file("\\x")).code(), Code::INVALID_HEADER) << at;
    EXPECT_EQ(Parse(file("\xff")).code(), Code::INVALID_HEADER) << at;
    Header header;
    ASSERT_TRUE(Parse(file("\\\""), &header).ok()) << at;
    EXPECT_EQ(header.names, std::string(at, 'n') + '"' + std::string(31 - at, 'n'));
    ASSERT_TRUE(Parse(file("\x7f"), &header).ok()) << at;
    ASSERT_TRUE(Parse(file("\xC3\xA9"), &header).ok()) << at;
  }
}

TEST(Header, AcceptsEveryDtypeAtItsSize) {
  for (size_t i = 0; i < kDTypeCount; ++i) {
    std::string bytes = std::to_string(kDTypeBits[i]);  // of 8 elements
    Header header;
    Status status =
        Parse(File("{\"w\":" + Entry(kDTypeNames[i], "[2,4]", "[0," + bytes + "]") + "}", kDTypeBits[i]), &header);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(static_cast<size_t>(header.entries[0].dtype), i);
  }
}

TEST(Header, CountsTrailingBytesWhereTheyAreAllowed) {
  HeaderOptions allow;
  allow.allow_trailing_bytes = true;
  Header header;
  ASSERT_TRUE(Parse(File("{\"w\":" + kF32 + "}", 9), &header, allow).ok());
  EXPECT_EQ(header.trailing_bytes, 5u);
  EXPECT_EQ(header.data_size(), 4u);
  EXPECT_EQ(Parse(File("{\"w\":" + kF32 + "}", 3), &header, allow).code(), Code::METADATA_INCOMPLETE_BUFFER);
}

TEST(Header, NeedsOnlyItsOwnBytesOfALargerFile) {
  std::string text = "{\"w\":" + Entry("U8", "[5000000000]", "[0,5000000000]") + "}";
  Header header;
  ASSERT_TRUE(Parse(File(text), &header, {}, 8 + text.size() + 5000000000).ok());
  EXPECT_EQ(header.entries[0].end, 5000000000u);
  EXPECT_EQ(Parse(File(text).substr(0, 20), &header, {}, 8 + text.size() + 5000000000).code(), Code::UNEXPECTED_EOF);
  EXPECT_EQ(Parse("abc", &header, {}, 100).code(), Code::UNEXPECTED_EOF);
}

TEST(Header, RefusesEveryTruncation) {
  std::string file = File("{\"w\":" + kF32 + ",\"v\":" + Entry("F64", "[1]", "[4,12]") + "}", 12);
  for (size_t length = 0; length < file.size(); ++length) {
    Status status = Parse(file.substr(0, length));
    EXPECT_FALSE(status.ok()) << length;
  }
  EXPECT_TRUE(Parse(file).ok());
}

TEST(Header, NamesFileTensorAndOffset) {
  Status status = Parse(File("{\"h.0.w\":" + kF32 + "}", 2));
  EXPECT_EQ(status.message(),
            "dir/model.safetensors: tensor \"h.0.w\" ends at byte 70, but the file has 68: it was cut short");
  EXPECT_EQ(status.tensor(), "h.0.w");
  EXPECT_EQ(status.offset(), 66);

  status = Parse(File("{\"h.0.w\":" + kF32 + ",\"h.0.w\":1}", 4));
  EXPECT_EQ(status.tensor(), "h.0.w");
  EXPECT_EQ(status.offset(), 66);

  status = Parse(File(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})", 20));
  EXPECT_EQ(
      status.message(),
      "dir/model.safetensors: tensor \"a\": shape [2, 3] of F32 takes 24 bytes, but data_offsets [0, 20] span 20");
  EXPECT_EQ(status.offset(), 9);
}

TEST(Header, KeepsHostileNamesOutOfMessages) {
  EXPECT_EQ(QuoteName("a\nb\x1b[31m\x7f\"\\"), "\"a\\u000ab\\u001b[31m\\u007f\\\"\\\\\"");
  EXPECT_EQ(QuoteName("\xE2\x80\xAEgpj\xC2\x85"), "\"\\u202egpj\\u0085\"");
  EXPECT_EQ(QuoteName("\xE9\x87\x8D"), "\"\xE9\x87\x8D\"");
  EXPECT_EQ(QuoteName(std::string(1000, 'x')), '"' + std::string(80, 'x') + "\" (and 920 bytes more)");
  // Never half of a sequence, wherever the cut falls.
  for (int pad = 0; pad < 4; ++pad) {
    std::string name(pad, 'x');
    for (int i = 0; i < 40; ++i) name += "\xF0\x9F\x98\x80";
    std::string quoted = QuoteName(name);
    EXPECT_EQ((quoted.find_last_of('"') - 1 - pad) % 4, 0u);
  }
}

}  // namespace
}  // namespace fst
