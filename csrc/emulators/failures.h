// What emulated libraries have in common: settings from the environment, how they complain, and calls that are made to
// fail. None of it has a lock.
#pragma once
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace fst::emulators {

inline std::string FormatList(const char* format, va_list args) {
  char text[1024];
  vsnprintf(text, sizeof text, format, args);
  return text;
}

// "emulated cuFile: ..." to stderr, then abort().
[[noreturn]] inline void AbortAs(const char* library, const char* format, va_list args) {
  fprintf(stderr, "emulated %s: %s\n", library, FormatList(format, args).c_str());
  fflush(stderr);
  abort();
}

inline std::string Text(const char* name, const char* otherwise) {
  const char* text = getenv(name);
  return text != nullptr && text[0] != '\0' ? text : otherwise;
}

// `abort` is called for what is no whole number.
inline unsigned long long Number(const char* name, unsigned long long otherwise, void (*abort)(const char*, ...)) {
  const std::string text = Text(name, "");
  char* end = nullptr;
  const unsigned long long value = strtoull(text.c_str(), &end, 10);
  if (*end != '\0') abort("%s is '%s', expected a whole number", name, text.c_str());
  return text.empty() ? otherwise : value;
}

// Calls by function: how many there were, and which are to fail.
class Failures {
 public:
  // `functions`: those that can.
  explicit Failures(std::vector<std::string> functions) : functions_(std::move(functions)) {}

  // The `nth` call of a function from now on (0: each) is to fail with `code`. False: there is no such function.
  bool Add(const std::string& function, unsigned long long nth, int code) {
    const bool known = std::find(functions_.begin(), functions_.end(), function) != functions_.end();
    if (known) due_.push_back({function, nth, 0, code});
    return known;
  }

  // "function:nth:code;..." of an environment variable; `abort` is called for what is none.
  void Read(const char* variable, void (*abort)(const char*, ...)) {
    const std::string all = Text(variable, "");
    for (size_t from = 0; from < all.size();) {
      const size_t to = std::min(all.find(';', from), all.size());
      const std::string one = all.substr(from, to - from);
      from = to + 1;
      const size_t first = one.find(':'), second = one.find(':', first + 1);
      const bool whole = first != std::string::npos && second != std::string::npos;
      const char* const text = one.c_str();
      if (!whole || !Add(one.substr(0, first), strtoull(text + first + 1, nullptr, 10), atoi(text + second + 1)))
        abort("%s has '%s', expected function:nth:code with a function of the library", variable, one.c_str());
    }
  }

  // Counts a call; the code that it is to fail with, 0 for none.
  int Take(const std::string& function) {
    ++calls_[function];
    int code = 0;
    for (auto it = due_.begin(); it != due_.end();) {
      const bool due = it->function == function && (++it->seen == it->nth || it->nth == 0);
      if (due && code == 0) code = it->code;
      it = due && it->nth != 0 ? due_.erase(it) : it + 1;
    }
    return code;
  }

  // Since the start, or Forget().
  unsigned long long calls(const std::string& function) const {
    auto found = calls_.find(function);
    return found == calls_.end() ? 0 : found->second;
  }

  void Forget() {
    due_.clear();
    calls_.clear();
  }

 private:
  struct Failure {
    std::string function;
    unsigned long long nth;
    unsigned long long seen;
    int code;
  };
  const std::vector<std::string> functions_;
  std::vector<Failure> due_;
  std::map<std::string, unsigned long long> calls_;
};

}  // namespace fst::emulators
