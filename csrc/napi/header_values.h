// A checked header as a JavaScript value: one block of memory, never one object per tensor.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "safetensors/packed_header.h"

namespace fst {

// What src/native/packed.ts calls PackedHeader, and makes an object of: properties that are set from here take V8 ten
// times as long. `identity` is null for a header that came from memory. The environment's thread, some microseconds.
// Throws Napi::Error: out of memory, or ending.
Napi::Value HeaderToJs(Napi::Env env, const std::shared_ptr<PackedHeader>& header, const FileIdentity* identity);

// Of an object NativeFileIdentity.
FileIdentity IdentityFromJs(const Napi::Object& object);
// Of 4 numbers of src/safetensors/metadata.ts identitiesOf.
FileIdentity IdentityFrom(const uint64_t* numbers);

// Sets two properties: all texts as one string, or as UTF-8 where they are long, and a Uint32Array of where each ends
// in it, in UTF-16 units, or bytes. `texts` is valid UTF-8, `lengths` are in bytes. Thread and errors as HeaderToJs.
void SetTexts(Napi::Object object, const char* key, const char* ends_key, std::string texts,
              const std::vector<uint32_t>& lengths);

}  // namespace fst
