// NextChunk on random plans: it covers every needed byte exactly once, with reads as the reader needs them.
#include "transfer/chunker.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/model.h"

namespace fst {
namespace {

constexpr uint64_t kGap = 32 << 10;

struct ChunkCase {
  const char* name;
  bool direct, scatters;
  size_t alignment;
  uint64_t chunk, boundary;
  bool skips = false;
  uint64_t picks = 0;
};

const ChunkCase kCases[] = {
    {"BufferedDirect", true, true, 1, 16 << 10, 0},
    {"Skipping", true, true, 1, 256 << 10, 0, true},
    {"SkippingStaged", false, true, 1, 256 << 10, 0, true},
    {"Picking", true, true, 1, 256 << 10, 0, true, 4096},
    {"PickingStaged", false, true, 1, 256 << 10, 0, true, 4096},
    {"BufferedOnePiece", true, false, 1, 16 << 10, 0},
    {"Staged", false, false, 1, 16 << 10, 0},
    {"StagedTiny", false, false, 1, 100, 0},
    {"ODirect", false, false, 4096, 16 << 10, 0},
    {"ODirectOneBlock", false, false, 4096, 4096, 0},
    {"Gds", true, false, 4096, 16 << 10, 0},
    {"GdsScattering", true, true, 4096, 64 << 10, 0},
    {"GdsOneBlock", true, false, 4096, 4096, 0},
    {"Boundary", true, true, 1, 1 << 20, 8 << 10},
    {"StagedBoundary", false, false, 512, 12 << 10, 8 << 10},
    {"GdsBoundary", true, false, 4096, 64 << 10, 16 << 10},
};

class Chunker : public ::testing::TestWithParam<ChunkCase> {
 protected:
  ChunkRules Rules() const {
    const ChunkCase& c = GetParam();
    ChunkRules rules{{}, c.direct, c.chunk, c.skips ? 2048 : kGap};
    rules.needs.offset_alignment = rules.needs.length_alignment = rules.needs.memory_alignment = c.alignment;
    rules.needs.skips = c.skips;
    rules.needs.picks_holes = c.picks;
    rules.needs.boundary = c.boundary;
    rules.needs.scatters = c.scatters;
    return rules;
  }
  // As Engine::Create sizes them.
  static uint64_t SlotBytes(const ChunkRules& rules) {
    uint64_t alignment = rules.needs.offset_alignment;
    return alignment > 1 ? rules.chunk_bytes + 2 * alignment
                         : std::max<uint64_t>((rules.chunk_bytes + 4095) / 4096 * 4096, 4096);
  }

  // The same parts, each run by itself.
  static std::vector<ChunkPart> RunsOf(const Chunk& chunk) {
    std::vector<ChunkPart> runs;
    for (const ChunkPart& part : chunk.parts) {
      for (uint64_t i = 0; i < part.runs; ++i) {
        const uint64_t done = i * part.run();
        runs.push_back({part.item, part.file_offset + i * part.stride, part.destination + done, part.run(),
                        part.source + done, part.output});
      }
    }
    return runs;
  }

  // One chunk against the contracts of chunker.h and reader.h.
  static void CheckChunk(const Plan& plan, const ChunkRules& rules, const Chunk& chunk, size_t end, uint64_t address) {
    const ReaderNeeds& needs = rules.needs;
    ASSERT_FALSE(chunk.parts.empty());
    const std::vector<ChunkPart> runs = RunsOf(chunk);
    const PlanItem& first = plan.items[chunk.parts.front().item];
    const uint64_t file_size = plan.files[first.file].expected.size;
    EXPECT_EQ(chunk.offset % needs.offset_alignment, 0U);
    EXPECT_EQ(chunk.length % needs.length_alignment, 0U);
    EXPECT_LE(chunk.required, chunk.length);
    EXPECT_LT(chunk.offset + chunk.length, file_size + needs.length_alignment) << "reads past the end of the file";
    EXPECT_LE(chunk.length, chunk.direct ? rules.chunk_bytes : SlotBytes(rules)) << "does not fit its slot";
    if (needs.boundary > 0) {
      EXPECT_EQ(chunk.offset / needs.boundary, (chunk.offset + chunk.length - 1) / needs.boundary);
    }
    uint64_t before = chunk.parts.front().file_offset, sum = 0, skipped = 0, source = before - chunk.offset;
    const PlanItem* last = nullptr;
    EXPECT_LE(chunk.offset, before);
    EXPECT_LT(before - chunk.offset, needs.offset_alignment);
    for (const ChunkPart& part : runs) {
      const PlanItem& item = plan.items[part.item];
      EXPECT_LT(part.item, end);
      EXPECT_EQ(item.file, first.file);
      EXPECT_GT(part.length, 0U);
      EXPECT_GE(part.file_offset, before) << "parts overlap or step back";
      const uint64_t hole = part.file_offset - before;
      const bool read = hole <= rules.largest_gap && !chunk.direct && source + hole == part.source;
      if (hole > 0 && !read) {
        EXPECT_TRUE(needs.skips) << "a hole of " << hole << " bytes is in the read";
        skipped += hole;
      } else if (last != nullptr && last->strided() && last->run >= 64 << 10) {
        EXPECT_LE(hole * 32, last->run) << "a hole behind a long run is read";
      }
      if (!chunk.direct) {
        EXPECT_EQ(part.source, source + (read ? hole : 0));
      }
      source += (read ? hole : 0) + part.length;
      before = part.file_offset + part.length;
      sum += part.length;
      last = &item;
      if (chunk.direct) {
        EXPECT_EQ(item.allocation, first.allocation);
      }
    }
    EXPECT_EQ(chunk.offset + chunk.required, before);
    EXPECT_EQ(chunk.skipped, skipped);
    EXPECT_LE(chunk.picked, skipped);
    uint64_t pieces = 0;
    for (const ChunkPart& part : chunk.parts) pieces += part.picked ? 1 : part.runs;
    EXPECT_LE(pieces, chunk.direct ? 3072U : 6144U);
    if (!chunk.direct) return;
    EXPECT_TRUE(rules.direct);
    EXPECT_EQ(chunk.length - chunk.skipped, sum)
        << "a direct read must end with its last part: what follows is a neighbour's";
    EXPECT_LE(chunk.parts.size(), needs.scatters ? 1024U : 1U);
    EXPECT_EQ((address + chunk.parts.front().destination) % needs.memory_alignment, 0U);
  }

  void Run(const Model& model, Random& random, bool windows) {
    const Plan& plan = model.plan;
    const ChunkRules rules = Rules();
    std::vector<uint64_t> addresses;
    for (size_t i = 0; i < plan.allocations.size(); ++i)
      addresses.push_back(Chance(random, 0.7) ? 4096 * (1 + Below(random, 1000)) : 256 * (1 + Below(random, 1000)));
    std::vector<uint64_t> covered(plan.items.size());
    Cursor cursor;
    size_t end = windows ? 0 : plan.items.size(), reads = 0;
    for (;;) {
      while (cursor.item < plan.items.size() && plan.items[cursor.item].length == 0) cursor = {cursor.item + 1, 0};
      if (cursor.item >= plan.items.size()) break;
      if (cursor.item >= end) end = std::min<size_t>(plan.items.size(), cursor.item + 1 + Below(random, 6));
      uint64_t address = addresses[plan.items[cursor.item].allocation];
      Chunk chunk = NextChunk(plan, rules, cursor, end, address);
      ASSERT_NO_FATAL_FAILURE(CheckChunk(plan, rules, chunk, end, address));
      for (const ChunkPart& part : RunsOf(chunk)) {
        const PlanItem& item = plan.items[part.item];
        EXPECT_EQ(part.file_offset, item.OffsetOf(covered[part.item])) << "a byte is left out or read twice";
        EXPECT_EQ(part.destination, item.destination + covered[part.item]);
        EXPECT_LE(part.length, item.Together(covered[part.item])) << "bytes of a hole go to memory";
        covered[part.item] += part.length;
        EXPECT_LE(covered[part.item], item.length);
      }
      ASSERT_TRUE(chunk.next.item > cursor.item || chunk.next.done > cursor.done) << "no progress";
      cursor = chunk.next;
      ASSERT_LE(cursor.item, end);
      if (cursor.item < plan.items.size()) {
        EXPECT_TRUE(cursor.done == 0 || cursor.done < plan.items[cursor.item].length);
      }
      ++reads;
    }
    for (size_t i = 0; i < plan.items.size(); ++i) EXPECT_EQ(covered[i], plan.items[i].length) << "item " << i;
    EXPECT_GT(reads, 0U);
  }
};

TEST_P(Chunker, CoversRandomPlansOnce) {
  using Order = ModelShape::Order;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    ModelShape shape;
    shape.order = seed % 3 == 0 ? Order::kFiles : seed % 3 == 1 ? Order::kInterleaved : Order::kShuffled;
    shape.congruent = seed % 2 == 0;
    shape.max_length = seed % 5 == 0 ? 200 : seed % 5 == 1 ? 100000 : 9000;
    shape.allocation = 256 << 10;
    Model model = RandomModel(random, shape);
    Run(model, random, /*windows=*/seed % 4 == 0);
    if (HasFailure()) return;
  }
}

// Many items in one read, overlapping tensors, and the same tensor twice.
TEST_P(Chunker, CoversOverlappingTensors) {
  Random random(7);
  Model model = RandomModel(random, {});
  Plan& plan = model.plan;
  plan.items.clear();
  plan.allocations = {{1 << 20, 0}};
  for (uint64_t i = 0; i < 40; ++i) plan.items.push_back({0, 0, i * 13, 100 + i, 1024 * i});
  plan.items.push_back(plan.items.back());
  plan.files[0].expected.size = 4096;
  Run(model, random, false);
}

INSTANTIATE_TEST_SUITE_P(Readers, Chunker, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

Plan OneFile(std::vector<PlanItem> items) {
  Plan plan;
  plan.files.resize(1);
  plan.files[0].expected.size = 1 << 20;
  plan.allocations = {{1 << 20, 0}, {1 << 20, 0}};
  plan.items = std::move(items);
  return plan;
}

ChunkRules Aligned(size_t alignment, bool direct) {
  ChunkRules rules{{}, direct, 64 << 10, kGap};
  rules.needs.offset_alignment = rules.needs.length_alignment = rules.needs.memory_alignment = alignment;
  rules.needs.scatters = true;
  return rules;
}

TEST(Chunk, MergesContiguousTensorsAcrossEmptyOnes) {
  Plan plan = OneFile({{0, 0, 0, 100, 0}, {0, 0, 100, 0, 0}, {0, 0, 100, 50, 256}, {0, 0, 150, 0, 0}});
  Chunk chunk = NextChunk(plan, Aligned(1, true), {}, 4, 0);
  EXPECT_TRUE(chunk.direct);
  EXPECT_EQ(chunk.parts.size(), 2U);
  EXPECT_EQ(chunk.length, 150U);
  EXPECT_EQ(chunk.next.item, 4U);
}

TEST(Chunk, ADirectReadStaysInOneAllocation) {
  Plan plan = OneFile({{0, 0, 0, 100, 0}, {0, 1, 100, 50, 0}});
  EXPECT_EQ(NextChunk(plan, Aligned(1, true), {}, 2, 0).parts.size(), 1U);
  EXPECT_EQ(NextChunk(plan, Aligned(1, false), {}, 2, 0).parts.size(), 2U);
}

TEST(Chunk, ReadsIntoTensorMemoryEndAtMultiplesOfMemory) {
  const Plan plan = OneFile({{0, 0, 1000, 300000, 512}});
  const uint64_t longest = 64 << 10;
  const Chunk first = NextChunk(plan, Aligned(1, true), {}, 1, 4096);
  EXPECT_EQ(first.length, longest - 4096 - 512);
  const Chunk second = NextChunk(plan, Aligned(1, true), first.next, 1, 4096);
  EXPECT_EQ(second.length, longest);
  EXPECT_EQ(second.parts[0].destination, longest - 4096);
  EXPECT_EQ(NextChunk(plan, Aligned(1, false), {}, 1, 4096).length, longest - 1000) << "of the file where it is staged";
}

TEST(Chunk, OnlyTheEdgesOfACongruentTensorAreStaged) {
  Plan plan = OneFile({{0, 0, 1000, 40000, 1000}});
  ChunkRules rules = Aligned(4096, true);
  Chunk head = NextChunk(plan, rules, {}, 1, 8192);
  EXPECT_FALSE(head.direct);
  EXPECT_EQ(head.required, 4096U);
  Chunk middle = NextChunk(plan, rules, head.next, 1, 8192);
  EXPECT_TRUE(middle.direct);
  EXPECT_EQ(middle.offset, 4096U);
  EXPECT_EQ(middle.length, 36864U);  // up to 40960, the last whole block
  Chunk tail = NextChunk(plan, rules, middle.next, 1, 8192);
  EXPECT_FALSE(tail.direct);
  EXPECT_EQ(tail.required, 40U);
  EXPECT_EQ(tail.next.item, 1U);
}

TEST(Chunk, AnIncongruentTensorIsStagedWhole) {
  Plan plan = OneFile({{0, 0, 4096, 40000, 256}});
  EXPECT_FALSE(NextChunk(plan, Aligned(4096, true), {}, 1, 8192).direct);
  EXPECT_TRUE(NextChunk(plan, Aligned(4096, true), {}, 1, 8192 - 256).direct);
}

TEST(Chunk, AHoleWiderThanTheGapBeginsARead) {
  for (uint64_t hole : {kGap, kGap + 1}) {
    Plan plan = OneFile({{0, 0, 0, 10, 0}, {0, 0, 10 + hole, 10, 256}});
    EXPECT_EQ(NextChunk(plan, Aligned(1, false), {}, 2, 0).parts.size(), hole == kGap ? 2U : 1U);
  }
}

PlanItem Strided(uint64_t offset, uint64_t runs, uint64_t run, uint64_t stride) {
  PlanItem item{0, 0, offset, runs * run, 0};
  item.run = run;
  item.stride = stride;
  return item;
}

TEST(Chunk, ShortRunsAreReadWithTheirHolesAndLongOnesWithout) {
  const Plan near = OneFile({Strided(0, 20, 1000, 3000)}), wide = OneFile({Strided(0, 20, 1000, 1001 + kGap)});
  const Plan longer = OneFile({Strided(0, 5, 64 << 10, 96 << 10)});
  for (bool direct : {false, true}) {
    Chunk chunk = NextChunk(near, Aligned(1, direct), {}, 1, 0);
    EXPECT_FALSE(chunk.direct) << "short runs pass through a slot";
    EXPECT_EQ(chunk.parts.size(), 20U);
    EXPECT_EQ(chunk.length, 19 * 3000U + 1000U);
    EXPECT_EQ(NextChunk(wide, Aligned(1, direct), {}, 1, 0).length, 1000U);
    chunk = NextChunk(longer, Aligned(1, direct), {}, 1, 0);
    EXPECT_EQ(chunk.direct, direct);
    EXPECT_EQ(chunk.length, 64U << 10);
  }
}

TEST(Chunk, HolesAreSkippedWithinOneReadWhereTheReaderCan) {
  const Plan plan = OneFile({Strided(0, 3, 1000, 10000)});
  for (bool direct : {false, true}) {
    ChunkRules rules = Aligned(1, direct);
    rules.needs.skips = rules.needs.scatters = true;
    rules.largest_gap = 2048;
    Chunk chunk = NextChunk(plan, rules, {}, 1, 0);
    EXPECT_EQ(chunk.direct, direct);
    ASSERT_EQ(chunk.parts.size(), 1U) << "the runs lie together in the slot, so that one copy takes them";
    EXPECT_EQ(chunk.parts[0].runs, 3U);
    EXPECT_EQ(chunk.parts[0].length, 3000U);
    EXPECT_EQ(chunk.parts[0].file_end(), 21000U);
    EXPECT_EQ(chunk.required, 21000U);
    EXPECT_EQ(chunk.skipped, 18000U);
  }
}

// Memory fills more slowly than the file goes by, so a multiple of memory is not where such a read ends: what is left
// until there would be ever shorter reads.
TEST(Chunk, WhatSkipsHolesIsReadInChunksOfTheFile) {
  Plan some = OneFile({});
  for (uint64_t i = 0; i < 250; ++i) some.items.push_back({0, 0, i * 4096, 1000, i * 1024});
  ChunkRules rules = Aligned(1, true);
  rules.needs.skips = true;
  rules.largest_gap = 0;
  for (const Plan& plan : {OneFile({Strided(0, 1000, 256, 1024)}), OneFile({Strided(0, 62, 8192, 16384)}), some}) {
    int reads = 0;
    for (Cursor cursor; cursor.item < plan.items.size(); ++reads)
      cursor = NextChunk(plan, rules, cursor, plan.items.size(), 4096).next;
    EXPECT_EQ(reads, 16) << "of 64 KiB";
  }
}

// Tensors that follow each other in the file, wherever they go: by the file in chunks of 64 KiB.
TEST(Chunk, ReadsGoOnWhereMemoryIsElsewhere) {
  Plan apart = OneFile({}), back = OneFile({}), halves = OneFile({});
  apart.allocations.clear();
  for (uint32_t i = 0; i < 250; ++i) {
    apart.allocations.push_back({4096, 0});
    apart.items.push_back({0, i, i * 4096, 4096, 0});
    back.items.push_back({0, 0, i * 4096, 4096, (249 - i) * 4096});
    halves.items.push_back({0, 0, i * 4096, 4096, i / 2 * 4096 + i % 2 * 524288});
  }
  auto reads = [](const Plan& plan, bool direct) {
    int count = 0;
    for (Cursor cursor{0, 100}; cursor.item < plan.items.size(); ++count)
      cursor = NextChunk(plan, Aligned(1, direct), cursor, plan.items.size(), 4096).next;
    return count;
  };
  EXPECT_EQ(reads(apart, false), 16) << "through slots, of tensors with memory of their own";
  EXPECT_EQ(reads(back, true), 16);
  EXPECT_LE(reads(halves, true), 24) << "these end in memory as well";
}

TEST(Chunk, RunsOfOnePartEndBeforeTheEndOfTheRead) {
  const Plan plan = OneFile({Strided(0, 20, 1000, 10000)});
  ChunkRules rules = Aligned(1, true);
  rules.needs.skips = rules.needs.scatters = true;
  rules.largest_gap = 0;
  rules.chunk_bytes = 40500;
  Chunk chunk = NextChunk(plan, rules, {}, 1, 0);
  ASSERT_EQ(chunk.parts.size(), 2U);
  EXPECT_EQ(chunk.parts[0].runs, 4U);
  EXPECT_EQ(chunk.parts[1].runs, 1U) << "the end of the read cuts the fifth";
  EXPECT_EQ(chunk.parts[1].length, 500U);
  EXPECT_EQ(chunk.next.done, 4500U);
}

TEST(Chunk, RunsThatConvertFillNoMoreThanTheirSlot) {
  PlanItem item = Strided(0, 40, 1000, 10000);
  item.from = DType::BF16;
  item.to = DType::F32;
  const Plan plan = OneFile({item});
  ChunkRules rules = Aligned(1, false);
  rules.needs.skips = rules.needs.scatters = true;
  rules.largest_gap = 0;
  rules.outputs_in_slot = true;
  rules.slot_bytes = 8192;
  const Chunk chunk = NextChunk(plan, rules, {}, 1, 0);
  ASSERT_FALSE(chunk.parts.empty());
  const ChunkPart& last = chunk.parts.back();
  EXPECT_LE(last.source + last.length, 8192U);
  EXPECT_LE(last.output + 2 * last.length, 8192U);
}

TEST(Chunk, CountsHolesThatTheReaderReadsAllTheSame) {
  const Plan near = OneFile({Strided(0, 20, 1000, 3000)}), wide = OneFile({Strided(0, 20, 1000, 5096)});
  const Plan longer = OneFile({Strided(0, 20, 17000, 19000)});
  ChunkRules rules = Aligned(1, true);
  rules.needs.skips = rules.needs.scatters = true;
  rules.needs.picks_holes = 4096;
  rules.largest_gap = 0;
  EXPECT_EQ(NextChunk(near, rules, {}, 1, 0).picked, 19 * 2000U);
  EXPECT_EQ(NextChunk(wide, rules, {}, 1, 0).picked, 0U);
  EXPECT_EQ(NextChunk(longer, rules, {}, 1, 0).picked, 0U) << "each of longer runs is read by itself";
}

TEST(Plan, RefusesRunsThatOverlapEndAfterTheFileOrAreNotWhole) {
  const uint64_t size = 1 << 20;
  EXPECT_TRUE(OneFile({Strided(0, 4, 10, 100)}).Validate().ok());
  EXPECT_TRUE(OneFile({Strided(size - 310, 4, 10, 100)}).Validate().ok());
  for (const PlanItem& wrong : {Strided(size - 309, 4, 10, 100), Strided(0, 4, 10, 10), Strided(0, 4, 10, 9),
                                Strided(0, 2, 10, UINT64_MAX), Strided(size - 5, 1, 10, 100)}) {
    EXPECT_EQ(OneFile({wrong}).Validate().code(), Code::INVALID_ARGUMENT);
  }
  PlanItem uneven = Strided(0, 4, 10, 100);
  uneven.length = 35;
  EXPECT_EQ(OneFile({uneven}).Validate().code(), Code::INVALID_ARGUMENT);
  PlanItem split = Strided(0, 4, 10, 100);
  split.from = DType::F32;
  split.to = DType::F16;
  EXPECT_EQ(OneFile({split}).Validate().code(), Code::INVALID_ARGUMENT) << "10 bytes are no whole F32";
}

TEST(ChunkerApart, NoReadIncludesWhatLiesBetweenItems) {
  Plan plan;
  plan.files.push_back({"", {}});
  plan.files[0].expected.size = 1000;
  plan.allocations.push_back({2048, 0});
  plan.items.push_back({0, 0, 0, 100, 0});
  plan.items.push_back({0, 0, 100, 100, 256});  // follows
  plan.items.push_back({0, 0, 300, 100, 512});  // behind another plan's bytes
  ChunkRules rules{{}, false, 1 << 20, kGap};
  EXPECT_EQ(NextChunk(plan, rules, {}, 3, 0).length, 400U);
  plan.apart = true;
  Chunk first = NextChunk(plan, rules, {}, 3, 0);
  EXPECT_EQ(first.length, 200U);
  EXPECT_EQ(NextChunk(plan, rules, first.next, 3, 0).length, 100U);
  rules.needs.skips = rules.needs.scatters = true;
  Chunk skipping = NextChunk(plan, rules, {}, 3, 0);
  EXPECT_EQ(skipping.length - skipping.skipped, 300U);
}

}  // namespace
}  // namespace fst
