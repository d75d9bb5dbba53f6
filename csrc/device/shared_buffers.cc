#include "device/shared_buffers.h"

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "base/random.h"

namespace fst {
namespace {

constexpr size_t kFewTokens = 256;

struct Shared {
  std::shared_ptr<DeviceBuffer> held;  // until it is first taken
  std::weak_ptr<DeviceBuffer> buffer;
  size_t offset, length;
};

struct Table {
  // Tells tokens of this process from those of others.
  const std::string prefix = Format("fst-%016" PRIx64 "-", RandomSecret());
  std::mutex mutex;  // guards what follows
  std::map<uint64_t, Shared> shared;
  uint64_t next = 1;
  size_t sweep_at = kFewTokens;

  // The number of a token; 0 for what is none of this process.
  uint64_t NumberOf(const std::string& token) const {
    if (token.compare(0, prefix.size(), prefix) != 0) return 0;
    const uint64_t number = strtoull(token.c_str() + prefix.size(), nullptr, 10);
    return number < next && token == prefix + std::to_string(number) ? number : 0;
  }
};

Table& TheTable() {
  static Table* table = new Table;
  return *table;
}

}  // namespace

std::string ShareBuffer(SharedPart part) {
  Table& table = TheTable();
  std::lock_guard<std::mutex> lock(table.mutex);
  if (table.shared.size() >= table.sweep_at) {
    for (auto at = table.shared.begin(); at != table.shared.end();)
      at = at->second.buffer.expired() ? table.shared.erase(at) : std::next(at);
    table.sweep_at = std::max(kFewTokens, 2 * table.shared.size());
  }
  const uint64_t number = table.next++;
  std::weak_ptr<DeviceBuffer> buffer = part.buffer;
  table.shared[number] = {std::move(part.buffer), std::move(buffer), part.offset, part.length};
  return table.prefix + std::to_string(number);
}

Status TakeShared(const std::vector<std::string>& tokens, const std::vector<size_t>& lengths,
                  std::vector<SharedPart>* out) {
  Table& table = TheTable();
  std::vector<SharedPart> parts;
  std::vector<std::shared_ptr<DeviceBuffer>> dropped;  // after the lock: the last reference frees memory
  std::lock_guard<std::mutex> lock(table.mutex);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string& token = tokens[i];
    const uint64_t number = table.NumberOf(token);
    if (number == 0) {
      return Status(Code::INVALID_ARGUMENT,
                    "expected what share() gave in a thread of this process, found another token; memory goes to "
                    "other processes by exportHandle()");
    }
    auto found = table.shared.find(number);
    auto buffer = found == table.shared.end() ? nullptr : found->second.buffer.lock();
    if (buffer == nullptr) {
      return Status(Code::CLOSED,
                    "the memory of a shared tensor is gone: it was received before or revoked, and everybody who had "
                    "it has disposed it; call share() once for each receiver");
    }
    if (found->second.length != lengths[i]) {
      return Status(Code::TENSOR_INVALID_INFO, Format("a shared tensor says that it has %zu bytes, but has %zu",
                                                      lengths[i], found->second.length));
    }
    parts.push_back({std::move(buffer), found->second.offset, found->second.length});
  }
  dropped.reserve(tokens.size());
  for (const std::string& token : tokens) dropped.push_back(std::move(table.shared[table.NumberOf(token)].held));
  *out = std::move(parts);
  return Status::Ok();
}

void RevokeShared(const std::string& token) {
  Table& table = TheTable();
  std::shared_ptr<DeviceBuffer> dropped;  // after the lock
  std::lock_guard<std::mutex> lock(table.mutex);
  auto found = table.shared.find(table.NumberOf(token));
  if (found != table.shared.end()) dropped = std::move(found->second.held);
}

}  // namespace fst
