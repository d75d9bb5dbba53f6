// A page of memory, the smallest of any machine: what mappings are made of, and direct reads begin and end at.
#pragma once
#include <cstddef>

namespace fst {

inline constexpr size_t kPage = 4096;

}  // namespace fst
