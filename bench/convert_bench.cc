// The speed of each conversion on one thread, portable and fast, beside memcpy of as many bytes in the same run: GB/s
// of bytes read + bytes written (1e9). `convert_bench [MiB of source]`, by default 4, as a staging slot.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "convert/float_convert.h"

namespace {

using fst::DType;

// The best of several runs, at least 60 ms together: other work on the machine can only slow a run down.
double Seconds(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  run();
  double best = 1e9, total = 0;
  for (int i = 0; i < 5 || total < 0.06; ++i) {
    const auto start = Clock::now();
    run();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t bytes = static_cast<size_t>(argc > 1 ? std::max(1, atoi(argv[1])) : 4) << 20;
  std::vector<unsigned char> source(bytes), destination(bytes * sizeof(double));
  uint32_t random = 1;
  for (unsigned char& byte : source) byte = static_cast<unsigned char>((random = random * 1664525 + 1013904223) >> 24);
  printf("%zu MiB of source, one thread; GB/s of bytes read + written\n", bytes >> 20);
  printf("%-18s %9s %9s %9s\n", "conversion", "portable", "fast", "memcpy");
  for (size_t f = 0; f < fst::kDTypeCount; ++f) {
    for (size_t t = 0; t < fst::kDTypeCount; ++t) {
      const DType from = static_cast<DType>(f), to = static_cast<DType>(t);
      if (!fst::CanConvertFloats(from, to)) continue;
      const size_t n = bytes / fst::BytesOf(from), moved = bytes + n * fst::BytesOf(to);
      auto rate = [&](fst::ConvertPath path) {
        return static_cast<double>(moved) / 1e9 /
               Seconds([&] { fst::ConvertFloats(from, to, source.data(), destination.data(), n, path); });
      };
      const double portable = rate(fst::ConvertPath::kPortable);
      const double fast = fst::HasFastConvert() ? rate(fst::ConvertPath::kBest) : portable;
      const size_t half = std::min(moved / 2, bytes);
      const double copy =
          2 * static_cast<double>(half) / 1e9 / Seconds([&] { memcpy(destination.data(), source.data(), half); });
      printf("%-8s %-9s %9.2f %9.2f %9.2f\n", fst::kDTypeNames[f], fst::kDTypeNames[t], portable, fast, copy);
    }
  }
  return 0;
}
