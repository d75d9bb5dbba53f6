// Digests for JavaScript: of files, of memory, and as texts of others.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "base/digest.h"
#include "device/device.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/header_values.h"
#include "reader/file_digests.h"
#include "safetensors/sums.h"

namespace fst {
namespace {

constexpr size_t kReadBack = 1 << 20;  // bytes that are copied from a device at a time

// Sets two properties: a Uint8Array of kinds, and one of the digests' bytes, Digest::kMostBytes each.
void SetDigests(Napi::Object object, const std::vector<Digest>& digests) {
  auto kinds = Napi::Uint8Array::New(object.Env(), digests.size());
  auto bytes = Napi::Uint8Array::New(object.Env(), digests.size() * Digest::kMostBytes);
  for (size_t i = 0; i < digests.size(); ++i) {
    kinds[i] = static_cast<uint8_t>(digests[i].kind);
    std::copy(digests[i].bytes.begin(), digests[i].bytes.end(), bytes.Data() + i * Digest::kMostBytes);
  }
  object["kinds"] = kinds;
  object["digests"] = bytes;
}

std::vector<FileRange> RangesOf(const Napi::Float64Array& array) {
  std::vector<FileRange> ranges;
  for (size_t i = 0; i + 1 < array.ElementLength(); i += 2)
    ranges.push_back({static_cast<uint64_t>(array[i]), static_cast<uint64_t>(array[i + 1])});
  return ranges;
}

// parseSums(bytes: Uint8Array, path): Promise<NativeSums>. The bytes must not change until it settles.
Napi::Value ParseSumsJs(const Napi::CallbackInfo& info) {
  auto sums = std::make_shared<Sums>();
  auto bytes = info[0].As<Napi::Uint8Array>();
  const uint8_t* data = bytes.Data();
  const size_t length = bytes.ByteLength();
  std::string path = info[1].As<Napi::String>();
  return AsyncWork::Run(
      info.Env(), [=] { return ParseSums(data, length, path, sums.get()); },
      [sums](Napi::Env env) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        SetTexts(object, "names", "nameEnds", std::move(sums->names), sums->name_lengths);
        SetDigests(object, sums->digests);
        object["header"] = Napi::String::New(env, DigestText(sums->header));
        object["size"] = Napi::Number::New(env, sums->size);
        return object;
      },
      bytes);
}

// digestFile(path, identity, kind, ranges: Float64Array [offset, length, …], progress: External): Promise<string[]>,
// the text of each range's digest. See DigestFile.
Napi::Value DigestFileJs(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  const FileIdentity identity = IdentityFromJs(info[1].As<Napi::Object>());
  const auto kind = static_cast<DigestKind>(SizeOf(info[2]));
  auto progress = FromExternal<std::atomic<uint64_t>>(info[4]);
  auto digests = std::make_shared<std::vector<Digest>>();
  return AsyncWork::RunOnFile(
      info.Env(),
      [=, ranges = RangesOf(info[3].As<Napi::Float64Array>())] {
        return DigestFile(path, identity, kind, ranges, progress.get(), digests.get());
      },
      [digests](Napi::Env env) -> Napi::Value {
        Napi::Array texts = Napi::Array::New(env, digests->size());
        for (uint32_t i = 0; i < digests->size(); ++i) texts[i] = Napi::String::New(env, DigestText((*digests)[i]));
        return texts;
      });
}

// What is checked in an allocation.
struct Check {
  std::shared_ptr<DeviceBuffer> buffer;
  std::vector<FileRange> ranges;  // in the buffer
  std::vector<Digest> expected;   // by range
  int wrong = -1;                 // the first one that differs
  Digest found;                   // in its place
};

Status Run(Check& check) {
  const DeviceBuffer& buffer = *check.buffer;
  std::vector<char> copy(buffer.device().host_accessible() ? 0 : kReadBack);
  for (size_t i = 0; i < check.ranges.size(); ++i) {
    const auto& [offset, length] = check.ranges[i];
    if (offset > buffer.size() || length > buffer.size() - offset)
      return Status(Code::INVALID_ARGUMENT, "the bytes to check are not in their allocation");
    auto digester = Digester::New(check.expected[i].kind);
    if (copy.empty()) {
      digester->Update(reinterpret_cast<const char*>(buffer.address()) + offset, length);
    } else {
      for (uint64_t done = 0; done < length;) {
        const uint64_t some = std::min<uint64_t>(length - done, copy.size());
        FST_RETURN_IF_ERROR(buffer.device().Read(buffer, offset + done, some, copy.data()));
        digester->Update(copy.data(), some);
        done += some;
      }
    }
    check.found = digester->Finish();
    if (check.found == check.expected[i]) continue;
    check.wrong = static_cast<int>(i);
    break;
  }
  return Status::Ok();
}

// checkDigests(allocation, ranges: Float64Array [offset, length, …], kinds: Uint8Array, digests: Uint8Array):
// Promise<{wrong, expected, found}>: the first range whose bytes have another digest, -1 for none; and both as texts
Napi::Value CheckDigests(const Napi::CallbackInfo& info) {
  auto check = std::make_shared<Check>();
  check->buffer = FromExternal<DeviceBuffer>(info[0]);
  check->ranges = RangesOf(info[1].As<Napi::Float64Array>());
  auto kinds = info[2].As<Napi::Uint8Array>(), digests = info[3].As<Napi::Uint8Array>();
  Status packed = DigestsOf(kinds.Data(), kinds.ByteLength(), digests.Data(), digests.ByteLength(), &check->expected);
  const bool none = std::any_of(check->expected.begin(), check->expected.end(),
                                [](const Digest& digest) { return digest.kind == DigestKind::kNone; });
  if (packed.ok() && (none || check->expected.size() != check->ranges.size()))
    packed = Status(Code::INVALID_ARGUMENT, "each range has to have a digest");
  ThrowIfError(info.Env(), packed);
  return AsyncWork::Run(
      info.Env(), [check] { return Run(*check); },
      [check](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result["wrong"] = Napi::Number::New(env, check->wrong);
        result["expected"] = Napi::String::New(env, check->wrong < 0 ? "" : DigestText(check->expected[check->wrong]));
        result["found"] = Napi::String::New(env, check->wrong < 0 ? "" : DigestText(check->found));
        return result;
      });
}

}  // namespace

void ExportDigests(Napi::Env env, Napi::Object exports) {
  Export<ParseSumsJs>(env, exports, "parseSums");
  Export<DigestFileJs>(env, exports, "digestFile");
  Export<CheckDigests>(env, exports, "checkDigests");
}

}  // namespace fst
