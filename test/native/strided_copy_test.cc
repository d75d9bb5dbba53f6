#include "device/strided_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "device/fake_device.h"
#include "device/host_device.h"

namespace fst {
namespace {

std::shared_ptr<DeviceBuffer> BufferOf(const std::shared_ptr<Device>& device, const std::string& bytes) {
  std::shared_ptr<DeviceBuffer> buffer;
  EXPECT_TRUE(device->Allocate(bytes.size(), &buffer).ok());
  EXPECT_TRUE(device->Write(*buffer, 0, bytes.size(), bytes.data()).ok());
  return buffer;
}
std::string BytesOf(const DeviceBuffer& buffer) {
  std::string bytes(buffer.size(), '\0');
  EXPECT_TRUE(buffer.device().Read(buffer, 0, bytes.size(), bytes.data()).ok());
  return bytes;
}
std::string Pattern(size_t size, unsigned seed) {
  std::string bytes;
  std::minstd_rand random(seed);
  while (bytes.size() < std::min<size_t>(size, 10007)) bytes += static_cast<char>(random());
  while (bytes.size() < size) bytes.append(bytes, 0, size - bytes.size());
  return bytes;
}

// Run by run, straight from the definition.
void CopyPlainly(const StridedCopy& copy, size_t dim, const char* source, char* destination) {
  if (dim == copy.dims.size()) {
    memcpy(destination, source, copy.run);
    return;
  }
  for (int64_t i = 0; i < static_cast<int64_t>(copy.dims[dim].count); ++i) {
    CopyPlainly(copy, dim + 1, source + i * copy.dims[dim].source_stride,
                destination + i * copy.dims[dim].destination_stride);
  }
}

class StridedCopyTest : public testing::TestWithParam<bool> {
 protected:
  std::shared_ptr<Device> device_ = GetParam() ? std::shared_ptr<Device>(std::make_shared<HostDevice>("cpu"))
                                               : std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options());

  void ExpectAsPlain(const StridedCopy& copy, size_t source_size, size_t destination_size) {
    const std::string from = Pattern(source_size, 1);
    std::string expected = Pattern(destination_size, 2);
    auto source = BufferOf(device_, from), destination = BufferOf(device_, expected);
    Status status = CopyStrided(copy, *source, *destination);
    ASSERT_TRUE(status.ok()) << status.message();
    CopyPlainly(copy, 0, from.data() + copy.source_offset, expected.data() + copy.destination_offset);
    EXPECT_TRUE(BytesOf(*destination) == expected);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, StridedCopyTest, testing::Values(true, false));

TEST_P(StridedCopyTest, CopiesWhatTheNumbersSayAndNothingElse) {
  for (uint64_t run : {1, 2, 3, 4, 8, 16, 17}) {
    const int64_t r = static_cast<int64_t>(run);
    ExpectAsPlain({run, 5, 7, {}}, 5 + run, 7 + run);
    ExpectAsPlain({run, 3, 1, {{400, 2 * r, r + 1}}}, 3 + 800 * run, 1 + 400 * (run + 1));
    // Backwards, in two dimensions.
    ExpectAsPlain({run, 600 * run, 0, {{20, -30 * r, 25 * r}, {25, r, r}}}, 640 * run, 500 * run);
    ExpectAsPlain({run, 30 * run, 2, {{1, 0, 0}, {20, 31 * r, 30 * r}, {30, -r, r}}}, 700 * run, 2 + 600 * run);
  }
}

// On a device that the host cannot address: through host memory, in several parts.
TEST_P(StridedCopyTest, CopiesMoreThanAPart) {
  const uint64_t count = 12 << 20;
  ExpectAsPlain({2, 1, 3, {{count, 3, 2}}}, 1 + count * 3, 3 + count * 2);
  // Halves within the second dimension as well.
  ExpectAsPlain({100, 0, 0, {{2, 50 << 20, 100}, {1 << 18, 200, 200}}}, 102 << 20, 200 << 18);
}

TEST_P(StridedCopyTest, CopiesLongRunsOneByOne) {
  ExpectAsPlain({300 << 10, 0, 1, {{300, 301 << 10, 300 << 10}}}, size_t{301 << 10} * 300,
                1 + (size_t{300 << 10} * 300));
}

TEST_P(StridedCopyTest, RefusesWhatLeavesItsMemory) {
  auto source = BufferOf(device_, Pattern(100, 1)), destination = BufferOf(device_, Pattern(50, 2));
  const uint64_t huge = UINT64_MAX;
  const int64_t far = INT64_MAX;
  EXPECT_TRUE(CopyStrided({2, 0, 0, {{25, 4, 2}}}, *source, *destination).ok());
  for (const StridedCopy& copy : std::vector<StridedCopy>{
           {0, 0, 0, {}},
           {1, 100, 0, {}},
           {1, huge, 0, {}},
           {1, 0, 50, {}},
           {1, 0, huge, {}},
           {51, 0, 0, {}},
           {huge, 0, 0, {}},
           {2, 0, 0, {{26, 2, 2}}},
           {2, 3, 0, {{25, 4, 2}}},
           {2, 0, 1, {{25, 4, 2}}},
           {1, 0, 0, {{0, 1, 1}}},
           {1, 0, 0, {{huge, 0, 0}}},
           {1, 0, 0, {{25, far, 1}}},
           {1, 0, 0, {{25, 1, far}}},
           {1, 0, 0, {{2, -1, 1}}},
           {1, 0, 0, {{2, 1, -1}}},
           {1, 0, 0, {{7, 0, 0}, {8, 0, 0}}},
           {1, 0, 0, {{1 << 20, 0, 0}, {1 << 22, 0, 0}, {1 << 22, 0, 0}}},
       }) {
    EXPECT_EQ(CopyStrided(copy, *source, *destination).code(), Code::INVALID_ARGUMENT);
  }
}

}  // namespace
}  // namespace fst
