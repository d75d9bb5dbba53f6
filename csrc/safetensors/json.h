// A strict scanner for the JSON of a header (RFC 8259). Not a library's, because the format needs what those hide:
// equal keys at every level, also when one is written with \u escapes; a number's text; limits; no tree, no copies.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fst {

// The first byte that breaks UTF-8 (also overlong forms, surrogates and values past U+10FFFF); `length` for none.
size_t FindInvalidUtf8(const char* text, size_t length);

// Walks over one JSON text that is valid UTF-8. Every method returns false on an error; the first one stays, see
// error() and position(). The text must outlive the scanner. One thread.
class JsonScanner {
 public:
  enum class Error { kNone, kSyntax, kDuplicateKey };
  // Arrays and objects nested deeper are kSyntax: bounds the stack; serde_json has the same limit.
  static constexpr int kMaxDepth = 128;

  JsonScanner(const char* text, size_t length) : begin_(text), at_(text), end_(text + length) {}

  // The first byte of the next token, white space skipped; '\0' at the end.
  char Peek() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
    return at_ < end_ ? *at_ : '\0';
  }
  bool AtNumber() {
    char next = Peek();
    return next == '-' || (next >= '0' && next <= '9');
  }

  // A string, escapes decoded. The view points into the text or the scanner and is valid until the next call.
  bool String(std::string_view* out);

  // A number; the view is its text, which follows JSON's grammar (it may have a sign, a fraction, an exponent).
  bool Number(std::string_view* out);

  // Any value, checked whole, equal keys included. `depth`: arrays and objects around it.
  bool Skip(int depth);

  // An object: on_member(key) is called behind each colon and must scan the value; it returns false to stop with an
  // error of this scanner. Finding equal keys is up to the caller. The key is valid until the scanner's next call.
  template <typename OnMember>
  bool Object(OnMember on_member) {
    if (!Take('{', "expected '{'")) return false;
    if (Peek() == '}') return ++at_, true;
    while (true) {
      std::string_view key;
      if (Peek() != '"') return Fail("expected a key in double quotes");
      key_start_ = at_;
      if (!String(&key) || !Take(':', "expected ':' behind a key") || !on_member(key)) return false;
      if (Peek() == '}') return ++at_, true;
      if (!Take(',', "expected ',' or '}' in an object")) return false;
    }
  }

  // An array: on_element() is called before each value and must scan it.
  template <typename OnElement>
  bool Array(OnElement on_element) {
    if (!Take('[', "expected '['")) return false;
    if (Peek() == ']') return ++at_, true;
    while (true) {
      if (!on_element()) return false;
      if (Peek() == ']') return ++at_, true;
      if (!Take(',', "expected ',' or ']' in an array")) return false;
    }
  }

  // True when only white space is left.
  bool End() { return Peek() == '\0' && at_ == end_ ? true : Fail("expected nothing but spaces behind the object"); }

  // Records the first error, at the current position; always false.
  bool Fail(const char* what) { return Fail(Error::kSyntax, what, at_); }
  // A second key of the same name in one object, at the key's position; always false.
  bool FailDuplicate(std::string_view key);

  Error error() const { return error_; }
  const char* what() const { return what_; }  // of a kSyntax error: what was expected or wrong
  const std::string& duplicate_key() const { return duplicate_key_; }
  size_t position() const { return failed_at_ - begin_; }      // of the error: bytes from the text's start
  size_t key_position() const { return key_start_ - begin_; }  // of the key that Object met last

 private:
  bool Fail(Error error, const char* what, const char* at);
  bool Take(char expected, const char* what) { return Peek() == expected && at_ < end_ ? (++at_, true) : Fail(what); }
  bool Literal(std::string_view word);
  bool Escape();
  bool Hex4(uint32_t* unit);

  const char* const begin_;
  const char* at_;
  const char* const end_;
  const char* key_start_ = begin_;
  std::string decoded_;
  Error error_ = Error::kNone;
  const char* what_ = "";
  const char* failed_at_ = begin_;
  std::string duplicate_key_;
};

// Keyed by a secret of this process, so that nobody can write a file whose names all meet in one slot.
uint32_t HashName(std::string_view name);

// The keys of one object, less than 4 GiB in all. They lie one after the other: a thousand small blocks, once freed,
// are put together by the next thread that frees a large one, and that may be the event loop's.
class JsonKeys {
 public:
  // False where the object has the key.
  bool Insert(std::string_view key);
  bool Contains(std::string_view key) const {
    return !slots_.empty() && slots_[Find(key, HashName(key))].length_plus_one > 0;
  }

 private:
  struct Slot {
    uint32_t hash = 0;
    uint32_t offset = 0;           // in keys_
    uint32_t length_plus_one = 0;  // 0: free
  };
  // The slot that holds the key, or the free one where it belongs.
  size_t Find(std::string_view key, uint32_t hash) const;
  void Grow();

  std::string keys_;
  size_t count_ = 0;
  std::vector<Slot> slots_;  // by open addressing: a power of two of slots, at most half full
};

}  // namespace fst
