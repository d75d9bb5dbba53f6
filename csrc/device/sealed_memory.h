// Host memory for other processes: a memfd with copies of tensors, sealed, so that nobody can write to it or change its
// size any more. Whoever has the descriptor maps it; its pages exist once, and live until the last of descriptors and
// mappings is gone, whichever process that belongs to. Source: memfd_create(2), fcntl(2) (file sealing).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace fst {

// Any thread, blocks; for the terms see Device::ExportMemory. OUT_OF_HOST_MEMORY, IO_ERROR (also for a mapped tensor
// whose file was cut short), PLATFORM_UNSUPPORTED for a kernel without memfd.
Status SealMemory(Device& host, const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                  std::shared_ptr<ExportedMemory>* out);

// See Device::ImportMemory. What is written to the buffer is this process's alone.
Status MapSealed(const std::shared_ptr<Device>& host, int fd, size_t size, const std::string& seal,
                 std::shared_ptr<DeviceBuffer>* out);

}  // namespace fst
