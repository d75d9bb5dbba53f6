// Small text files of the system, and their words. Not by streams: those would link the locales of the C++ library into
// the addon, 0.2 MB in each prebuilt binary.
#pragma once
#include <string>
#include <vector>

namespace fst {

// The parts between any of `separators`, without empty ones.
std::vector<std::string> Split(const std::string& text, const char* separators);

// What a file holds; "" when it cannot be read.
std::string ReadText(const char* path);

}  // namespace fst
