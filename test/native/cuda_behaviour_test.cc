// The emulated driver answers like a real one did: cuda_real_smoke.cc prints the same lines for both.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace fst {
namespace {

TEST(CudaBehaviour, OfTheEmulatorIsThatOfARealDriver) {
  std::vector<std::string> expected, found;
  std::ifstream recorded(FST_SOURCE_DIR "/test/native/cuda_behaviour.txt");
  for (std::string line; std::getline(recorded, line);) expected.push_back(line);
  ASSERT_GT(expected.size(), 30u);

  FILE* run = popen("FASTSAFETENSORS_CUDA_LIB=" FST_BINARY_DIR
                    "/emulators/libcuda.so.1 FST_EMU_CUDA_STRICT=0 FST_EMU_CUDA_LEAKS=off "
                    "FST_EMU_CUDA_BANDWIDTH=4000000000 " FST_BINARY_DIR "/cuda_real_smoke behaviour 2>/dev/null",
                    "r");
  ASSERT_NE(run, nullptr);
  std::array<char, 512> line;
  while (fgets(line.data(), line.size(), run) != nullptr) {
    std::string text = line.data();
    text.erase(text.find_last_not_of('\n') + 1);
    if (text.rfind("behaviour: ", 0) == 0) found.push_back(text);
  }
  EXPECT_EQ(pclose(run), 0);
  EXPECT_EQ(found, expected);
}

}  // namespace
}  // namespace fst
