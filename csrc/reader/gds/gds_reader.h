// GPUDirect Storage: cuFile moves bytes from storage into device memory without passing through the host's. Straight
// into tensors where file offset and address are congruent modulo 4096, else through slots in device memory.
#pragma once
#include "reader/reader.h"

namespace fst {

struct GdsReaderOptions {
  int threads = 0;   // reads in progress at a time, since cuFileRead blocks; 0: 8
  size_t chunk = 0;  // bytes per read; 0: 4 MiB
  // True: the user chose GPUDirect Storage by name. Where there is no direct path, files are read in cuFile's
  // compatibility mode (through the host; TakeFallbacks reports it), and a driver that does not open is an error.
  // False: such files are read as by 'nogds'.
  bool chosen = true;
};

// Only for a CudaDevice whose memory is not unified; with others, the first load fails with COPIER_UNAVAILABLE. A file
// that cuFile refuses when it is registered or first read goes through a page-locked bounce buffer to the same place;
// TakeFallbacks reports it. Any other failure is an error.
std::unique_ptr<Reader> NewGdsReader(const GdsReaderOptions& options);

}  // namespace fst
