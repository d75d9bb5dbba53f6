// Memory of an emulated GPU, through the driver that the process loaded. Whatever the driver refuses ends the process.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fst::emulated_ort {

[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A number in the environment.
int Setting(const char* name, int otherwise);

uint64_t Allocate(int device, size_t bytes);
void Free(int device, uint64_t pointer);
// Memory that was freed, or is another device's, is refused by the driver.
void Read(int device, uint64_t from, void* to, size_t bytes);
void Write(int device, uint64_t to, const void* from, size_t bytes);

}  // namespace fst::emulated_ort
