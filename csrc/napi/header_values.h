// A checked header as a JavaScript value: a handful of typed arrays and one string, never one object per tensor.
#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "safetensors/header.h"

namespace fst {

// The object that src/native/packed.ts calls NativeHeader. `identity`, and the property, is null for a header that came
// from memory. A few ms for 100,000 tensors. The environment's thread. Throws Napi::Error: out of memory, or ending.
Napi::Value HeaderToJs(Napi::Env env, const Header& header, const FileIdentity* identity);

// The other way: of an object NativeFileIdentity.
FileIdentity IdentityFromJs(const Napi::Object& object);

// Sets two properties: all texts as one string, and a Uint32Array of where each ends in it, in UTF-16 units. `texts` is
// valid UTF-8, `lengths` are in bytes. Thread and errors as HeaderToJs.
void SetTexts(Napi::Object object, const char* key, const char* ends_key, const std::string& texts,
              const std::vector<uint32_t>& lengths);

}  // namespace fst
