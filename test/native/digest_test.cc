#include "base/digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace fst {
namespace {

std::vector<uint8_t> Scrambled(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(i * 2654435761U >> 13 ^ i);
  return bytes;
}

std::string Digits(const Digest& digest) {
  const std::string text = DigestText(digest);
  return text.substr(text.find(':') + 1);
}

std::string HashOf(std::unique_ptr<Digester> digester, const uint8_t* bytes, size_t length, size_t piece) {
  for (size_t done = 0; done < length; done += piece) digester->Update(bytes + done, std::min(piece, length - done));
  return Digits(digester->Finish());
}

struct Vector {
  size_t length;
  const char* digits;
};

// Of Scrambled(length), by `xxhsum -H2` (xxHash 0.8.1).
constexpr Vector kXxh3Vectors[] = {
    {0, "99aa06d3014798d86001c324468d497f"},     {1, "a6cd5e9392000f6ac44bdff4074eecdb"},
    {2, "c66f3f5451ea06f3bac0dce10c5585a9"},     {3, "857c0491709e309cf696dd0e04ce27e9"},
    {4, "881b8a3d2387dac2ab3816aebba7789f"},     {5, "d33af3edcfd5ce5db76cf8708da6485e"},
    {8, "a3561de736cb840457e826e862a8793b"},     {9, "fd9df06446f87f19edc7cfcb375dfc5c"},
    {15, "7dfea2c88ff09c872b3912f7ba9c5f21"},    {16, "bb1b6eea1ee2b20e9ba969ab499d86b7"},
    {17, "6a30c68f59b997a942fd34a716561b18"},    {31, "79f244536b8eae3cc02aa60589733e19"},
    {32, "f255860cde153ac9953e607f6c302618"},    {33, "f3fbe71a025568d5ff3e040397e1975f"},
    {63, "0d22f1a5adba812574a0dbc04d8e1e3b"},    {64, "28ccd18dc8d1bcbb55b423c21e8c76be"},
    {65, "155c7ec2bb8b0cb5e4b75516f049c299"},    {127, "c3907257ea5bfb10b234a92009396b53"},
    {128, "5074ee4408a384f952d48d9b34fd277c"},   {129, "0c6558b6a84a21bd69d159af5ae24a50"},
    {160, "d85351c51ec32fe9ed61cd96748ec092"},   {239, "02c363a5403c51e4e3dd33c1976c0a42"},
    {240, "59c78486bfc222a9eb8b9f45e41bbdf4"},   {241, "d662921643bc0f28792fcf39a7ff4785"},
    {255, "235fa9e343ea43885d5436be27f4839a"},   {256, "38a605bcd1b7765654131e0d1631e267"},
    {257, "13bb111635afbe0bf3782217839b9eca"},   {319, "ff16f3cda313034ed1a1b6cf38c5f7c5"},
    {320, "7757226f83c9c4e716f3f437047c67c0"},   {321, "0edf6e955dadbfb84b51ee18918f6910"},
    {511, "6cf093bb57630d2fd081168b0dd1eac4"},   {512, "0101508b84ec499a215c3e10b67dfb5d"},
    {513, "50a97f393ae2c2fa582ba268c36be58d"},   {1023, "05caf23c662b2ba7ef20c8088d5e8a52"},
    {1024, "df46d14c62e992f9a5bf48f173e2f1d4"},  {1025, "01d12391652a9e9414bc4b8a2ac06d5c"},
    {1087, "efc8d04a42f9684d210750dbc0c57888"},  {1088, "27719dcbf5cf2c0c92dfe2dea528998b"},
    {1089, "0062fef0dcdc66f1afe539c107552e47"},  {2047, "73dcc9fc54dc5f0f127c224915699783"},
    {2048, "0b7a7681e7ced4c023a519560126a214"},  {2049, "c4cd586bf6d9fe6ccc7b84bd10cf442e"},
    {4096, "3fa2e19e5b44d87b2621b7f7635ee764"},  {4097, "3ed35d8d1a02342bc16780e520c79f6d"},
    {65535, "71f97fd89c7834084e7a846db020005c"}, {65536, "6f0d6eb8fda963e5f7f34ed1ab1a6edf"},
    {65537, "20cff90ddd3801435528e4bec9cddfcb"}, {100000, "279b0d109d73dea433a4d86d4548cae3"},
};

// SHA-256 of what xxhsum prints for lengths 0 to 1100, a line each.
constexpr char kEveryLength[] = "54c98ee93df94a9a485f9f89600ce11f14621c0b9b4374d26260149917967409";

TEST(DigestTest, Xxh3IsThatOfXxhsum) {
  const std::vector<uint8_t> bytes = Scrambled(100000);
  for (const auto& [length, digits] : kXxh3Vectors) {
    EXPECT_EQ(Digits(DigestOf(DigestKind::kXxh3, bytes.data(), length)), digits) << length;
    EXPECT_EQ(HashOf(NewPortableXxh3(), bytes.data(), length, 100000), digits) << length;
  }
}

TEST(DigestTest, Xxh3OfEveryLengthIsThatOfXxhsum) {
  const std::vector<uint8_t> bytes = Scrambled(1100);
  for (bool portable : {false, true}) {
    std::string lines;
    for (size_t length = 0; length <= bytes.size(); ++length)
      lines += HashOf(portable ? NewPortableXxh3() : NewXxh3(), bytes.data(), length, 2000) + "\n";
    EXPECT_EQ(Digits(DigestOf(DigestKind::kSha256, lines.data(), lines.size())), kEveryLength);
  }
}

TEST(DigestTest, BytesMayComeInPiecesOfAnyLength) {
  const std::vector<uint8_t> bytes = Scrambled(5000);
  for (size_t length : {241, 256, 257, 1024, 1025, 3000, 5000}) {
    const std::string xxh3 = Digits(DigestOf(DigestKind::kXxh3, bytes.data(), length));
    const std::string sha256 = Digits(DigestOf(DigestKind::kSha256, bytes.data(), length));
    for (size_t piece : {1, 3, 63, 64, 65, 255, 256, 257, 320, 1023, 1024, 1025, 4000}) {
      EXPECT_EQ(HashOf(NewXxh3(), bytes.data(), length, piece), xxh3) << length << " by " << piece;
      EXPECT_EQ(HashOf(NewPortableXxh3(), bytes.data(), length, piece), xxh3) << length << " by " << piece;
      EXPECT_EQ(HashOf(NewSha256(), bytes.data(), length, piece), sha256) << length << " by " << piece;
      EXPECT_EQ(HashOf(NewPortableSha256(), bytes.data(), length, piece), sha256) << length << " by " << piece;
    }
  }
}

TEST(DigestTest, BytesMayLieAnywhere) {
  const std::vector<uint8_t> bytes = Scrambled(2100);
  std::vector<uint8_t> moved(2200);
  for (DigestKind kind : {DigestKind::kXxh3, DigestKind::kSha256}) {
    for (size_t length : {7, 200, 300, 2100}) {
      const Digest expected = DigestOf(kind, bytes.data(), length);
      for (size_t by = 0; by < 64; ++by) {
        memcpy(moved.data() + by, bytes.data(), length);
        EXPECT_EQ(DigestOf(kind, moved.data() + by, length), expected) << length << " at " << by;
      }
    }
  }
}

TEST(DigestTest, Sha256HasTheStandardsValues) {
  const std::pair<const char*, const char*> vectors[] = {
      {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
       "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
  };
  for (const auto& [text, digits] : vectors) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text);
    EXPECT_EQ(HashOf(NewSha256(), bytes, strlen(text), 100), digits);
    EXPECT_EQ(HashOf(NewPortableSha256(), bytes, strlen(text), 100), digits);
  }
}

TEST(DigestTest, PortableSha256OfEveryLengthIsThatOfOneByOne) {
  const std::vector<uint8_t> bytes = Scrambled(300);
  for (size_t length = 0; length <= 300; ++length)
    EXPECT_EQ(HashOf(NewPortableSha256(), bytes.data(), length, 300), HashOf(NewSha256(), bytes.data(), length, 1));
}

TEST(DigestTest, TextsAreReadAsTheyAreWritten) {
  for (DigestKind kind : {DigestKind::kXxh3, DigestKind::kSha256}) {
    const Digest digest = DigestOf(kind, "weights", 7);
    Digest read;
    ASSERT_TRUE(ParseDigest(DigestText(digest), &read));
    EXPECT_EQ(read, digest);
  }
  Digest upper;
  EXPECT_TRUE(ParseDigest("xxh3-128:0123456789ABCDEF0123456789abcdef", &upper));
  EXPECT_EQ(DigestText(upper), "xxh3-128:0123456789abcdef0123456789abcdef");
}

TEST(DigestTest, OtherTextsAreNoDigests) {
  Digest digest;
  for (const char* text : {"", "xxh3-128:", "sha256:", "xxh3-128:0123", "0123456789abcdef0123456789abcdef",
                           "xxh3-128:0123456789abcdef0123456789abcdeg", "xxh3-128:0123456789abcdef0123456789abcdef0",
                           "sha256:0123456789abcdef0123456789abcdef", "md5:0123456789abcdef0123456789abcdef",
                           "xxh3-128: 123456789abcdef0123456789abcdef", "XXH3-128:0123456789abcdef0123456789abcdef",
                           "xxh3-128:0123456789abcdef0123456789abcd@`"})
    EXPECT_FALSE(ParseDigest(text, &digest)) << text;
}

}  // namespace
}  // namespace fst
