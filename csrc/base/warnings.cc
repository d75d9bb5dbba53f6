#include "base/warnings.h"

#include <mutex>
#include <set>
#include <utility>

namespace fst {
namespace {

struct Warnings {
  std::mutex mutex;
  std::set<std::string> given;
  std::vector<std::string> waiting;
};

Warnings& AllWarnings() {
  static auto* warnings = new Warnings;
  return *warnings;
}

}  // namespace

void Warn(const std::string& text) {
  Warnings& all = AllWarnings();
  std::lock_guard<std::mutex> lock(all.mutex);
  if (all.given.insert(text).second) all.waiting.push_back(text);
}

std::vector<std::string> TakeWarnings() {
  Warnings& all = AllWarnings();
  std::lock_guard<std::mutex> lock(all.mutex);
  return std::exchange(all.waiting, {});
}

}  // namespace fst
