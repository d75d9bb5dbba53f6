// A reader for tests and benchmarks: serves the bytes of real files like a modelled store (bandwidth, latency of each
// read) and misbehaves on request.
#pragma once
#include "reader/reader.h"

namespace fst {

struct FakeReaderOptions {
  double gb_per_second = 0;  // 0: no limit
  double ms_per_io = 0;
  int in_flight = 16;
  size_t chunk = size_t{1} << 20;
  size_t alignment = 1;  // of offset, length and memory
  bool fills_host = true;
  bool reorder = false;  // reads complete in another order than they were submitted
  int fail_at = 0;       // the nth read fails with IO_ERROR; 0: none
  int short_at = 0;      // the nth read is a SHORT_READ; 0: none
  int stall_at = 0;      // the nth read completes only when the reader is destroyed; 0: none
  bool poison = true;    // fills the destination with a pattern when a read starts
};

std::unique_ptr<Reader> NewFakeReader(const FakeReaderOptions& options);

}  // namespace fst
