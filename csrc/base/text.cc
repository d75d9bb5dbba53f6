#include "base/text.h"

#include <algorithm>
#include <cstdio>
#include <memory>

namespace fst {

std::vector<std::string> Split(const std::string& text, const char* separators) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find_first_of(separators, begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::string ReadText(const char* path) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path, "re"), fclose);
  if (!file) return "";
  std::string text;
  char buffer[4096];
  size_t length;
  do {
    length = fread(buffer, 1, sizeof buffer, file.get());
    text.append(buffer, length);
  } while (length == sizeof buffer);
  return ferror(file.get()) != 0 ? "" : text;
}

}  // namespace fst
