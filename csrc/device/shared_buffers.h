// Buffers on their way from one thread of JavaScript to another: a message carries a token, and this table has what it
// stands for. Tokens are good in this process alone.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"

namespace fst {

struct SharedPart {
  std::shared_ptr<DeviceBuffer> buffer;
  size_t offset = 0, length = 0;  // inside the buffer
};

// A token for a part. It holds the buffer until it is first taken or revoked: who posts it may drop the buffer at once.
// Afterwards the token still stands for the buffer as long as somebody holds that. Any thread, here and below.
std::string ShareBuffer(SharedPart part);

// What the tokens stand for, all or none; `lengths`: what somebody says of them. CLOSED where a buffer is gone,
// INVALID_ARGUMENT for what is no token of this process, TENSOR_INVALID_INFO for another length.
Status TakeShared(const std::vector<std::string>& tokens, const std::vector<size_t>& lengths,
                  std::vector<SharedPart>* out);

// The token holds nothing any more. Does nothing for any other text.
void RevokeShared(const std::string& token);

}  // namespace fst
