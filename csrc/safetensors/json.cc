#include "safetensors/json.h"

#include <cstring>
#include <utility>

#include "base/random.h"

namespace fst {

namespace {

struct HashSecret {
  const uint64_t a = RandomSecret() | 1, b = RandomSecret() | 1;
};

uint64_t Mix(uint64_t x, uint64_t y) {
  __extension__ using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(x) * y;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

bool IsDigit(const char* at, const char* end) { return at < end && *at >= '0' && *at <= '9'; }

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | c >> 18));
    out->push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

// Bytes of the sequence at `at`, or 0 when it is none (Unicode 15, table 3-7).
size_t SequenceLength(const unsigned char* at, size_t left) {
  auto continues = [&](size_t i, unsigned char low = 0x80, unsigned char high = 0xBF) {
    return i < left && at[i] >= low && at[i] <= high;
  };
  unsigned char lead = at[0];
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // a continuation byte, or an overlong form
  if (lead < 0xE0) return continues(1) ? 2 : 0;
  if (lead < 0xF0) {
    unsigned char low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;  // overlong; surrogates
    return continues(1, low, high) && continues(2) ? 3 : 0;
  }
  if (lead > 0xF4) return 0;
  unsigned char low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;  // overlong; past U+10FFFF
  return continues(1, low, high) && continues(2) && continues(3) ? 4 : 0;
}

constexpr uint64_t Repeat(uint64_t byte) { return byte * 0x0101010101010101u; }

// How many of 8 bytes come before one that ends a run of plain characters in a string: a quote, a backslash, a control
// character. The byte at the lowest address is the lowest: a borrow spoils only what is behind the first one found.
int PlainBytes(uint64_t eight) {
  auto zero = [](uint64_t x) { return (x - Repeat(0x01)) & ~x & Repeat(0x80); };
  const uint64_t control = (eight - Repeat(0x20)) & ~eight & Repeat(0x80);
  const uint64_t special = control | zero(eight ^ Repeat('"')) | zero(eight ^ Repeat('\\'));
  return special == 0 ? 8 : __builtin_ctzll(special) / 8;
}

}  // namespace

size_t FindInvalidUtf8(const char* text, size_t length) {
  size_t at = 0;
  while (at < length) {
    uint64_t eight;
    if (length - at >= sizeof eight) {
      memcpy(&eight, text + at, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof eight;
        continue;
      }
    }
    size_t step = SequenceLength(reinterpret_cast<const unsigned char*>(text) + at, length - at);
    if (step == 0) return at;
    at += step;
  }
  return length;
}

bool JsonScanner::Fail(Error error, const char* what, const char* at) {
  if (error_ == Error::kNone) {
    error_ = error;
    what_ = what;
    failed_at_ = at;
  }
  return false;
}

bool JsonScanner::FailDuplicate(std::string_view key) {
  if (error_ == Error::kNone) duplicate_key_ = key;
  return Fail(Error::kDuplicateKey, "", key_start_);
}

bool JsonScanner::String(std::string_view* out) {
  if (!Take('"', "expected a string")) return false;
  const char* run = at_;
  bool escaped = false;
  while (at_ < end_) {
    for (int plain = 8; plain == 8 && end_ - at_ >= 8; at_ += plain) {
      uint64_t eight;
      memcpy(&eight, at_, sizeof eight);
      plain = PlainBytes(eight);
    }
    if (at_ == end_) break;
    unsigned char c = static_cast<unsigned char>(*at_);
    if (c == '"') {
      std::string_view tail(run, at_ - run);
      ++at_;
      if (!escaped) {
        *out = tail;
      } else {
        decoded_ += tail;
        *out = decoded_;
      }
      return true;
    }
    if (c < 0x20) return Fail("a control character in a string must be escaped");
    if (c != '\\') {
      ++at_;
      continue;
    }
    if (!escaped) decoded_.clear();
    escaped = true;
    decoded_.append(run, at_ - run);
    ++at_;
    if (!Escape()) return false;
    run = at_;
  }
  return Fail("a string has no end");
}

bool JsonScanner::Hex4(uint32_t* unit) {
  *unit = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    char c = at_ < end_ ? *at_ : '\0';
    uint32_t digit;
    if (c >= '0' && c <= '9') {
      digit = c - '0';
    } else if (c >= 'a' && c <= 'f') {
      digit = c - 'a' + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = c - 'A' + 10;
    } else {
      return Fail("expected four hexadecimal digits behind \\u");
    }
    *unit = *unit << 4 | digit;
  }
  return true;
}

// Behind the backslash.
bool JsonScanner::Escape() {
  char c = at_ < end_ ? *at_ : '\0';
  switch (c) {
    case '"':
    case '\\':
    case '/':
      decoded_.push_back(c);
      break;
    case 'b':
      decoded_.push_back('\b');
      break;
    case 'f':
      decoded_.push_back('\f');
      break;
    case 'n':
      decoded_.push_back('\n');
      break;
    case 'r':
      decoded_.push_back('\r');
      break;
    case 't':
      decoded_.push_back('\t');
      break;
    case 'u': {
      const char* lone = "a \\u escape is half of a surrogate pair";
      const char* start = at_ - 1;
      uint32_t high, low;
      ++at_;
      if (!Hex4(&high)) return false;
      if (high >= 0xDC00 && high <= 0xDFFF) return Fail(Error::kSyntax, lone, start);
      if (high >= 0xD800 && high <= 0xDBFF) {
        if (end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return Fail(Error::kSyntax, lone, start);
        at_ += 2;
        if (!Hex4(&low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return Fail(Error::kSyntax, lone, start);
        high = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
      }
      AppendUtf8(high, &decoded_);
      return true;
    }
    default:
      return Fail("an unknown escape in a string");
  }
  ++at_;
  return true;
}

bool JsonScanner::Number(std::string_view* out) {
  if (!AtNumber()) return Fail("expected a number");
  const char* start = at_;
  if (*at_ == '-') ++at_;
  if (!IsDigit(at_, end_)) return Fail("expected a digit in a number");
  bool zero = *at_++ == '0';
  if (zero && IsDigit(at_, end_)) return Fail(Error::kSyntax, "a number has a leading zero", start);
  while (IsDigit(at_, end_)) ++at_;
  if (at_ < end_ && *at_ == '.') {
    ++at_;
    if (!IsDigit(at_, end_)) return Fail("expected a digit behind the point of a number");
    while (IsDigit(at_, end_)) ++at_;
  }
  if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
    ++at_;
    if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    if (!IsDigit(at_, end_)) return Fail("expected a digit in the exponent of a number");
    while (IsDigit(at_, end_)) ++at_;
  }
  *out = std::string_view(start, at_ - start);
  return true;
}

bool JsonScanner::Literal(std::string_view word) {
  if (std::string_view(at_, end_ - at_).substr(0, word.size()) != word) return Fail("expected a value");
  at_ += word.size();
  return true;
}

bool JsonScanner::Skip(int depth) {
  std::string_view text;
  char next = Peek();
  if ((next == '{' || next == '[') && depth >= kMaxDepth)
    return Fail("more than 128 arrays and objects inside one another");
  switch (next) {
    case '"':
      return String(&text);
    case '{': {
      JsonKeys keys;
      return Object([&](std::string_view key) { return keys.Insert(key) ? Skip(depth + 1) : FailDuplicate(key); });
    }
    case '[':
      return Array([&] { return Skip(depth + 1); });
    case 't':
      return Literal("true");
    case 'f':
      return Literal("false");
    case 'n':
      return Literal("null");
    default:
      return AtNumber() ? Number(&text) : Fail("expected a value");
  }
}

uint32_t HashName(std::string_view name) {
  static const HashSecret secret;
  uint64_t hash = secret.a ^ name.size();
  uint64_t word;
  for (; name.size() >= sizeof word; name.remove_prefix(sizeof word)) {
    memcpy(&word, name.data(), sizeof word);
    hash = Mix(hash ^ word, secret.b);
  }
  word = 0;
  if (!name.empty()) memcpy(&word, name.data(), name.size());
  return static_cast<uint32_t>(Mix(Mix(hash ^ word, secret.b), secret.a));
}

bool JsonKeys::Insert(std::string_view key) {
  if (count_ * 2 >= slots_.size()) Grow();
  const uint32_t hash = HashName(key);
  Slot& slot = slots_[Find(key, hash)];
  if (slot.length_plus_one > 0) return false;
  slot = {hash, static_cast<uint32_t>(keys_.size()), static_cast<uint32_t>(key.size() + 1)};
  keys_ += key;
  ++count_;
  return true;
}

size_t JsonKeys::Find(std::string_view key, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (;; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.length_plus_one == 0) return at;
    const std::string_view other(keys_.data() + slot.offset, slot.length_plus_one - 1);
    if (slot.hash == hash && other == key) return at;
  }
}

void JsonKeys::Grow() {
  std::vector<Slot> old(slots_.empty() ? 8 : slots_.size() * 2);
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.length_plus_one == 0) continue;
    size_t at = slot.hash & mask;
    while (slots_[at].length_plus_one > 0) at = (at + 1) & mask;
    slots_[at] = slot;
  }
}

}  // namespace fst
