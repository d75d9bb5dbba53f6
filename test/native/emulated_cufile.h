// The emulated cuFile for C++ tests: its controls, and its library as the process's own.
#pragma once
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "emulators/cufile/control.h"
#include "reader/gds/cufile_api.h"

namespace fst::test {

struct CufileControl {
#define X(name, result, parameters) result(*name) parameters = nullptr;
  FST_EMU_CUFILE_CONTROL(X)
#undef X
};

inline const CufileControl& EmulatedCufileControl() {
  static const CufileControl control = [] {
    CufileControl made;
    setenv("FASTSAFETENSORS_CUFILE_LIB", FST_BINARY_DIR "/emulators/libcufile.so.0", 1);
    void* library = dlopen(FST_BINARY_DIR "/emulators/libcufile.so.0", RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(library, nullptr) << dlerror();
#define X(name, result, parameters) \
  made.name = reinterpret_cast<decltype(made.name)>(dlsym(library, "fst_emu_cufile_" #name));
    FST_EMU_CUFILE_CONTROL(X)
#undef X
    return made;
  }();
  return control;
}

}  // namespace fst::test
