// Random plans, and the files that they read.
#pragma once
#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "support/temp_folder.h"
#include "transfer/plan.h"

namespace fst {

using Random = std::mt19937_64;

inline uint64_t Below(Random& random, uint64_t end) { return random() % end; }
inline bool Chance(Random& random, double probability) {
  return static_cast<double>(Below(random, 1 << 20)) < probability * (1 << 20);
}

struct ModelShape {
  enum class Order { kFiles, kInterleaved, kShuffled };
  int files = 3;
  int tensors = 20;  // of each file
  uint64_t max_length = 6000;
  double empty = 0.15;       // of the tensors
  double gap = 0.2;          // of the tensors begin after a hole in the file
  uint64_t max_gap = 50000;  // bytes
  double strided = 0.2;      // of the tensors are runs with holes between them
  Order order = Order::kFiles;
  bool congruent = false;  // most destinations are where a direct read of 4096-byte blocks could put them
  uint64_t allocation = 16 << 10;
  double new_batch = 0.5;  // of the allocations begin a batch
};

struct Model {
  Plan plan;
  std::vector<std::string> contents;  // of the files

  const char* BytesOf(size_t item, uint64_t done = 0) const {
    return contents[plan.items[item].file].data() + plan.items[item].OffsetOf(done);
  }
  // Whether memory holds the bytes of an item.
  bool Holds(size_t item, const char* memory) const {
    const PlanItem& planned = plan.items[item];
    for (uint64_t done = 0; done < planned.length; done += planned.Together(done))
      if (memcmp(memory + done, BytesOf(item, done), planned.Together(done)) != 0) return false;
    return true;
  }
  uint64_t Bytes() const {
    uint64_t bytes = 0;
    for (const PlanItem& item : plan.items) bytes += item.length;
    return bytes;
  }
};

// The plan only: files have a size and no path.
inline Model RandomModel(Random& random, const ModelShape& shape) {
  Model model;
  std::vector<std::vector<PlanItem>> by_file(static_cast<size_t>(shape.files));
  for (uint32_t file = 0; file < by_file.size(); ++file) {
    uint64_t end = Below(random, 300);
    for (int i = 0; i < shape.tensors; ++i) {
      if (Chance(random, shape.gap)) end += Below(random, shape.max_gap);
      uint64_t most = Chance(random, 0.3) ? 64 : shape.max_length;
      uint64_t length = Chance(random, shape.empty) ? 0 : 1 + Below(random, most);
      PlanItem item{file, 0, end, length, 0};
      end += length;
      if (length > 0 && Chance(random, shape.strided)) {
        item.run = Chance(random, 0.1) ? (64 << 10) + Below(random, 3000) : 1 + Below(random, most / 4 + 1);
        item.stride = item.run + 1 + Below(random, Chance(random, 0.7) ? 3000 : shape.max_gap);
        const uint64_t runs = 2 + Below(random, item.run < 1000 ? 30 : 3);
        item.length = runs * item.run;
        end = item.offset + (runs - 1) * item.stride + item.run;
      }
      by_file[file].push_back(item);
    }
    PlanFile planned;
    planned.expected.size = end + Below(random, 5000);
    model.plan.files.push_back(planned);
  }
  std::vector<size_t> next(by_file.size());
  auto& items = model.plan.items;
  for (size_t file = 0; file < by_file.size();) {
    size_t from = shape.order == ModelShape::Order::kInterleaved ? Below(random, by_file.size()) : file;
    if (next[from] < by_file[from].size()) items.push_back(by_file[from][next[from]++]);
    while (file < by_file.size() && next[file] == by_file[file].size()) ++file;
  }
  if (shape.order == ModelShape::Order::kShuffled) std::shuffle(items.begin(), items.end(), random);
  uint64_t used = 0;
  for (PlanItem& item : items) {
    auto& allocations = model.plan.allocations;
    if (allocations.empty() || used + item.length > shape.allocation) {
      uint32_t batch = allocations.empty() ? 0 : allocations.back().batch;
      if (!allocations.empty() && Chance(random, shape.new_batch)) ++batch;
      allocations.push_back({0, batch});
      used = 0;
    }
    item.allocation = static_cast<uint32_t>(allocations.size() - 1);
    used = (used + 255) / 256 * 256;
    if (shape.congruent && Chance(random, 0.8)) used += (item.offset % 4096 + 4096 - used % 4096) % 4096;
    item.destination = used;
    used += item.length;
    allocations.back().size = used;
  }
  EXPECT_TRUE(model.plan.Validate().ok());
  return model;
}

// Fills the files of a plan with random bytes and writes them.
inline void WriteFiles(Random& random, const TempFolder& folder, Model* model) {
  for (size_t file = 0; file < model->plan.files.size(); ++file) {
    PlanFile& planned = model->plan.files[file];
    std::string bytes(planned.expected.size, '\0');
    for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
      const uint64_t eight = random();
      memcpy(&bytes[at], &eight, std::min(sizeof eight, bytes.size() - at));
    }
    planned.path = folder.Write("model-" + std::to_string(file), bytes);
    planned.expected = IdentityOf(planned.path);
    model->contents.push_back(std::move(bytes));
  }
}

}  // namespace fst
