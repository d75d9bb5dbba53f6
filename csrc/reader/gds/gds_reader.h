// GPUDirect Storage: cuFile moves bytes from storage into device memory without passing the host's. Straight into
// tensors where file offset and address agree in their last 12 bits, else through a small ring of device memory.
#pragma once
#include "reader/reader.h"

namespace fst {

struct GdsReaderOptions {
  int threads = 0;   // cuFileRead blocks: reads that are in progress at a time; 0: 8
  size_t chunk = 0;  // bytes a read; 0: 4 MiB
  // True: GPUDirect Storage was asked for by name. Reads go on in cuFile's compatibility mode (through the host; the
  // fallbacks name it), and a driver that does not open is an error. False: such files are read as by 'nogds'.
  bool chosen = true;
};

// Only for CudaDevice, whose memory is not unified; COPIER_UNAVAILABLE otherwise, at the first load. A file that cuFile
// refuses when it is registered or first read is read by the host into page-locked memory and copied to the same place:
// the fallbacks name it. Any other failure is an error.
std::unique_ptr<Reader> NewGdsReader(const GdsReaderOptions& options);

}  // namespace fst
