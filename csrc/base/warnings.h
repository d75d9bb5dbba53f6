// What a user should know although no load fails of it: warnings for the logger of the loader that looks next.
#pragma once
#include <string>
#include <vector>

namespace fst {

// Any thread. The same text counts once in a process.
void Warn(const std::string& text);

// Those that nobody has taken yet.
std::vector<std::string> TakeWarnings();

}  // namespace fst
