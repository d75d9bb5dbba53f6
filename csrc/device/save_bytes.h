// Writing bytes of an allocation to a file.
#pragma once
#include <sys/types.h>

#include <string>

#include "device/device.h"

namespace fst {

// Where bytes are written: the caller keeps the descriptor open.
struct FilePlace {
  int fd;
  off_t position;
  std::string path;         // for messages
  bool write_back = false;  // the file will be synced: the disk begins with what is written at once
};

// Writes all of `length` bytes. IO_ERROR. Blocks.
Status WriteFully(const char* bytes, size_t length, const FilePlace& place);

// Writes all of `length` bytes, which lie in the buffer; those that the host cannot address are copied piece by piece.
// IO_ERROR, and as Device::Read. Blocks.
Status SaveBytes(const DeviceBuffer& buffer, size_t offset, size_t length, FilePlace place);

}  // namespace fst
