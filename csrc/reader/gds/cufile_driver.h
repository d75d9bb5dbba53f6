// The process's one cuFile driver: opened at the first real use, which can take ten seconds, and kept.
#pragma once
#include "reader/gds/cufile_api.h"

namespace fst::cufile {

// Opens the driver unless it is open, and tells what it can. Any thread but the event loop's, with a CUDA context
// current; several at a time wait for one opening. A failure is not remembered. COPIER_UNAVAILABLE when the driver
// refuses this machine, GDS_ERROR for other failures.
Status OpenDriver(const CufileApi& api, Mode* mode);

// Closes the driver if OpenDriver opened it. Nothing may be registered. For tests: a process ends without it.
void CloseDriver();

// Registers device memory, once for all who ask: cuFile takes a range once only, and forgets it at once when it is told
// to. A refusal is no error, reads then go the slower way of memory that is not registered. Each OK is followed by one
// ReleaseBuffer, before the memory is freed. The memory's context is current. Any thread.
Status RegisterBuffer(const CufileApi& api, uint64_t base, size_t bytes);
void ReleaseBuffer(const CufileApi& api, uint64_t base);

}  // namespace fst::cufile
