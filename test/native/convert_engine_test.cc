// Loads that convert: what the engine puts into tensor memory, and how such plans are cut into chunks.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <future>
#include <random>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "device/fake_device.h"
#include "reader/fake_reader.h"
#include "transfer/chunker.h"
#include "transfer/engine.h"

namespace fst {
namespace {

// A file of random bytes, deleted with this object.
class RandomFile {
 public:
  explicit RandomFile(size_t size) : bytes_(size) {
    std::mt19937 random(static_cast<unsigned>(size));
    for (char& byte : bytes_) byte = static_cast<char>(random());
    char path[] = "/tmp/fst-convert-XXXXXX";
    int fd = mkstemp(path);
    EXPECT_GE(fd, 0);
    EXPECT_EQ(write(fd, bytes_.data(), size), static_cast<ssize_t>(size));
    EXPECT_TRUE(FileIdentity::Of(fd, path, &identity_).ok());
    close(fd);
    path_ = path;
  }
  ~RandomFile() { unlink(path_.c_str()); }
  PlanFile planned() const { return {path_, identity_}; }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  std::vector<char> bytes_;
  std::string path_;
  FileIdentity identity_;
};

struct Tensor {
  DType from, to;
  uint64_t elements;
};

// The tensors follow each other from byte `start` of the file, `hole` bytes apart. Destinations are multiples of 256.
Plan PlanOf(const RandomFile& file, const std::vector<Tensor>& tensors, uint64_t start, uint64_t hole) {
  Plan plan;
  plan.files.push_back(file.planned());
  uint64_t offset = start, destination = 0;
  for (const Tensor& tensor : tensors) {
    PlanItem item{0, 0, offset, tensor.elements * BytesOf(tensor.from), destination, tensor.from, tensor.to};
    offset += item.length + hole;
    destination = (destination + item.InMemory(item.length) + 255) / 256 * 256;
    plan.items.push_back(item);
  }
  plan.allocations.push_back({destination, 0});
  EXPECT_TRUE(plan.Validate().ok()) << plan.Validate().message();
  EXPECT_LE(offset, file.bytes().size());
  return plan;
}

const std::vector<Tensor> kTensors = {
    {DType::F32, DType::F16, 1001},    {DType::I64, DType::I64, 77},  {DType::F8_E4M3, DType::F32, 3003},
    {DType::F32, DType::BF16, 0},      {DType::F64, DType::F32, 513}, {DType::BF16, DType::F32, 1777},
    {DType::F8_E5M2, DType::BF16, 99}, {DType::U8, DType::U8, 31},    {DType::F16, DType::BF16, 4096},
};

std::vector<char> Expected(const RandomFile& file, const PlanItem& item) {
  std::vector<char> bytes(item.InMemory(item.length));
  const char* source = file.bytes().data() + item.offset;
  if (item.converts()) {
    ConvertFloats(item.from, item.to, source, bytes.data(), item.length / BytesOf(item.from), ConvertPath::kPortable);
  } else if (!bytes.empty()) {
    memcpy(bytes.data(), source, bytes.size());
  }
  return bytes;
}

struct ConvertCase {
  bool fake_device, always_stage, converts;
  size_t chunk, alignment;
  uint64_t start, hole, boundary = 0;
};

// A fake reader with other needs.
class BoundedReader : public Reader {
 public:
  BoundedReader(const FakeReaderOptions& options, uint64_t boundary, bool device_slots)
      : reader_(NewFakeReader(options)), needs_(reader_->needs()) {
    needs_.boundary = boundary;
    needs_.device_slots = device_slots;
  }
  const ReaderNeeds& needs() const override { return needs_; }
  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) override {
    return reader_->Start(std::move(queue), device);
  }
  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    return reader_->Open(path, expected, out);
  }
  Status Submit(ReadRequest request, uint64_t tag) override {
    // An element across a boundary belongs to the read that begins there.
    if (needs_.boundary > 0) {
      const uint64_t end = request.offset + request.required, last = (end - 1) / needs_.boundary * needs_.boundary;
      EXPECT_TRUE(last <= request.offset || last - request.offset < 8 + needs_.offset_alignment) << request.offset;
    }
    return reader_->Submit(std::move(request), tag);
  }

 private:
  std::unique_ptr<Reader> reader_;
  ReaderNeeds needs_;
};

// Loads the plan and closes the engine. Returns the transfer's status.
Status Load(const ConvertCase& c, Plan plan, FakeReaderOptions reader, std::shared_ptr<DeviceBuffer>* memory,
            bool device_slots = false) {
  std::shared_ptr<Device> device = std::make_shared<HostDevice>();
  FakeDevice::Options late;
  if (c.fake_device) device = std::make_shared<FakeDevice>("cuda:0", late);
  EngineOptions options;
  options.always_stage = c.always_stage;
  options.converts = c.converts;
  std::shared_ptr<Engine> engine;
  FST_RETURN_IF_ERROR(
      Engine::Create(device, std::make_unique<BoundedReader>(reader, c.boundary, device_slots), options, &engine));
  TransferOptions transfer_options;
  std::shared_ptr<Transfer> transfer;
  CompletionQueue wake;
  transfer_options.notify = [&wake] { wake.Wake(); };
  Status status = engine->Start(std::move(plan), transfer_options, &transfer);
  if (status.ok()) {
    std::vector<Completion> none;
    while (!transfer->drained()) wake.Take(&none, Clock::time_point::max());
    status = transfer->status();
    if (status.ok()) *memory = transfer->TakeAllocation(0);
  }
  std::promise<void> closed;
  engine->Close([&closed] { closed.set_value(); });
  closed.get_future().wait();
  return status;
}

class ConvertOnTheWay : public testing::TestWithParam<ConvertCase> {};

TEST_P(ConvertOnTheWay, EveryTensorIsExact) {
  const ConvertCase& c = GetParam();
  RandomFile file(60000);
  Plan plan = PlanOf(file, kTensors, c.start, c.hole);
  FakeReaderOptions reader;
  reader.chunk = c.chunk;
  reader.alignment = c.alignment;
  reader.reorder = true;
  std::shared_ptr<DeviceBuffer> memory;
  Status status = Load(c, plan, reader, &memory);
  ASSERT_TRUE(status.ok()) << status.message();
  for (size_t i = 0; i < plan.items.size(); ++i) {
    std::vector<char> expected = Expected(file, plan.items[i]), found(expected.size());
    ASSERT_TRUE(memory->device().Read(*memory, plan.items[i].destination, found.size(), found.data()).ok());
    EXPECT_TRUE(found == expected) << "tensor " << i;
  }
  memory.reset();
  EXPECT_EQ(Metrics::Get().in_flight.load(), 0);
  EXPECT_EQ(Metrics::Get().staging_bytes.load(), 0);
}

INSTANTIATE_TEST_SUITE_P(Chunks, ConvertOnTheWay,
                         testing::Values(ConvertCase{false, false, true, 1 << 20, 1, 64, 0},   //
                                         ConvertCase{false, true, false, 1 << 20, 1, 3, 5},    //
                                         ConvertCase{false, false, false, 7, 1, 1, 0},         //
                                         ConvertCase{false, true, true, 1000, 1, 13, 2},       //
                                         ConvertCase{false, false, true, 4096, 512, 9, 0},     //
                                         ConvertCase{true, false, true, 1 << 20, 1, 64, 0},    //
                                         ConvertCase{true, false, false, 1 << 20, 1, 3, 700},  //
                                         ConvertCase{true, false, false, 5, 1, 5, 0},          //
                                         ConvertCase{true, false, true, 4096, 1, 11, 0},       //
                                         ConvertCase{true, false, false, 4096, 1, 11, 0},      //
                                         ConvertCase{true, false, true, 512, 512, 7, 1},       //
                                         ConvertCase{true, false, false, 16, 16, 8, 0},        //
                                         ConvertCase{true, false, true, 4096, 1, 6, 0, 1024},  //
                                         ConvertCase{false, true, true, 4096, 256, 6, 3, 2048}));

TEST(ConvertEngine, AnErrorOfAReadLeavesNothingBehind) {
  RandomFile file(60000);
  for (bool fake_device : {false, true}) {
    ConvertCase c{fake_device, true, true, 1000, 1, 5, 0};
    FakeReaderOptions reader;
    reader.chunk = c.chunk;
    reader.fail_at = 9;
    std::shared_ptr<DeviceBuffer> memory;
    EXPECT_EQ(Load(c, PlanOf(file, kTensors, c.start, 0), reader, &memory).code(), Code::IO_ERROR);
    EXPECT_EQ(memory, nullptr);
    EXPECT_EQ(Metrics::Get().in_flight.load(), 0);
    EXPECT_EQ(Metrics::Get().staging_bytes.load(), 0);
  }
}

TEST(ConvertEngine, DeviceSlotsRefuseToConvert) {
  RandomFile file(60000);
  ConvertCase c{true, false, true, 4096, 1, 0, 0};
  std::shared_ptr<DeviceBuffer> memory;
  Status refused = Load(c, PlanOf(file, kTensors, 0, 0), {}, &memory, /*device_slots=*/true);
  EXPECT_EQ(refused.code(), Code::UNSUPPORTED_DTYPE);
  EXPECT_TRUE(Load(c, PlanOf(file, {{DType::F32, DType::F32, 100}}, 0, 0), {}, &memory, true).ok());
}

TEST(ConvertEngine, PlansThatCannotBeAreRefused) {
  RandomFile file(4096);
  Plan plan = PlanOf(file, {{DType::F32, DType::F16, 100}}, 0, 0);
  plan.items[0].length = 402;
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
  plan.items[0].length = 400;
  plan.items[0].to = DType::F64;
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
  plan.items[0] = {0, 0, 0, 400, 0, DType::F16, DType::F32};  // 800 bytes into 256
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
}

// For any rules: parts hold whole elements and cover every byte once and in order; a read and its converted elements
// fit into one slot without overlap; reads are not needlessly short.
TEST(ConvertEngine, ChunksHoldWholeElementsAndFitTheirSlots) {
  RandomFile file(60000);
  for (bool outputs_in_slot : {false, true}) {
    for (uint64_t chunk_bytes : {1, 7, 64, 1000, 4096, 65536}) {
      for (size_t alignment : {1, 16, 512}) {
        for (uint64_t start : {0, 1, 3, 509}) {
          Plan plan = PlanOf(file, kTensors, start, start % 2);
          ReaderNeeds needs;
          needs.offset_alignment = needs.length_alignment = needs.memory_alignment = alignment;
          const uint64_t chunk = std::max<uint64_t>(chunk_bytes / alignment * alignment, alignment);
          const uint64_t slot =
              std::max<uint64_t>(alignment > 1 ? chunk + 2 * alignment : (chunk + 4095) / 4096 * 4096, 4096);
          ChunkRules rules{needs, false, chunk, 32 << 10, slot, outputs_in_slot};
          std::vector<uint64_t> covered(plan.items.size());
          Cursor cursor;
          int reads = 0;
          while (cursor.item < plan.items.size()) {
            if (plan.items[cursor.item].length == 0) {
              cursor = {cursor.item + 1, 0};
              continue;
            }
            Chunk c = NextChunk(plan, rules, cursor, plan.items.size(), 0);
            ++reads;
            ASSERT_FALSE(c.parts.empty());
            ASSERT_LE(c.length, slot);
            ASSERT_EQ(c.offset % alignment, 0U);
            ASSERT_EQ(c.length % alignment, 0U);
            uint64_t free_from = c.length;
            for (const ChunkPart& part : c.parts) {
              const PlanItem& item = plan.items[part.item];
              ASSERT_EQ(part.file_offset, item.offset + covered[part.item]);
              ASSERT_EQ(part.destination, item.destination + item.InMemory(covered[part.item]));
              ASSERT_GT(part.length, 0U);
              ASSERT_LE(part.file_offset + part.length, c.offset + c.required);
              covered[part.item] += part.length;
              if (!item.converts()) continue;
              ASSERT_EQ(part.length % BytesOf(item.from), 0U);
              if (!outputs_in_slot) continue;
              ASSERT_GE(part.output, free_from);
              free_from = part.output + item.InMemory(part.length);
              ASSERT_LE(free_from, slot);
            }
            cursor = c.next;
          }
          for (size_t i = 0; i < covered.size(); ++i) ASSERT_EQ(covered[i], plan.items[i].length);
          EXPECT_LE(reads, chunk >= 4096 ? 60000 / 500 : 60000) << chunk << " " << alignment;
        }
      }
    }
  }
}

// If the reader can fill tensor memory, only items that convert go through a slot.
TEST(ConvertEngine, WhatDoesNotConvertStaysDirect) {
  RandomFile file(60000);
  Plan plan = PlanOf(file, kTensors, 8, 0);
  ChunkRules rules{{}, true, 1 << 20, 32 << 10, 1 << 20, false};
  Cursor cursor;
  while (cursor.item < plan.items.size()) {
    Chunk chunk = NextChunk(plan, rules, cursor, plan.items.size(), 0);
    for (const ChunkPart& part : chunk.parts) EXPECT_EQ(plan.items[part.item].converts(), !chunk.direct);
    cursor = chunk.next;
  }
}

}  // namespace
}  // namespace fst
