// The process's one cuFile driver: opened at the first real use, which can take ten seconds, and kept.
#pragma once
#include "reader/gds/cufile_api.h"

namespace fst::cufile {

// Opens the driver unless it is open, and says what it can do. Blocks; any thread with a CUDA context current.
// Concurrent calls wait for one opening. A failure is not remembered. COPIER_UNAVAILABLE when the driver refuses this
// machine, GDS_ERROR for other failures.
Status OpenDriver(const CufileApi& api, Mode* mode);

// Closes the driver if OpenDriver opened it. Nothing may be registered. For tests: a process need not call it.
void CloseDriver();

// Registers device memory and counts its users: cuFile accepts a range once only, and a single deregistration ends it.
// A refusal is not an error: reads into unregistered memory are slower. Call RemoveUser once for each OK, and then
// Deregister, before the memory is freed. The memory's context must be current. Any thread.
Status RegisterBuffer(const CufileApi& api, uint64_t base, size_t bytes);
void RemoveUser(uint64_t base);
// Does nothing where there is another user. False where cuFile failed: the memory is registered still and must not be
// freed; to be called again. The memory's context must be current. Any thread.
bool Deregister(const CufileApi& api, uint64_t base);

}  // namespace fst::cufile
