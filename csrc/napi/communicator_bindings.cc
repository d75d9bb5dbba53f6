// Broadcasts between the GPUs of several ranks.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "device/communicator.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/js_values.h"

namespace fst {

template <>
inline constexpr char kExternalName<Communicator>[] = "a communicator";

namespace {

// probeNccl(): Promise<{library, version}>. See LoadNccl.
Napi::Value ProbeNccl(const Napi::CallbackInfo& info) {
  auto api = std::make_shared<const nccl::NcclApi*>();
  return AsyncWork::Run(
      info.Env(), [api] { return nccl::LoadNccl(api.get()); },
      [api](Napi::Env env) {
        return TextsToJs(env, {{"library", (*api)->library}, {"version", nccl::VersionText((*api)->version)}});
      });
}

// newNcclId(): Promise<ArrayBuffer>. See NewUniqueId.
Napi::Value NewNcclId(const Napi::CallbackInfo& info) {
  auto id = std::make_shared<nccl::ncclUniqueId>();
  return AsyncWork::Run(
      info.Env(), [id] { return nccl::NewUniqueId(id.get()); },
      [id](Napi::Env env) {
        auto bytes = Napi::ArrayBuffer::New(env, sizeof id->internal);
        memcpy(bytes.Data(), id->internal, sizeof id->internal);
        return bytes;
      });
}

// openCommunicator(device, id: Uint8Array, rank, ranks): External. See Communicator::Open.
Napi::Value OpenCommunicator(const Napi::CallbackInfo& info) {
  Communicator::Options options = {};
  options.device = FromExternal<Device>(info[0]);
  auto id = info[1].As<Napi::Uint8Array>();
  if (id.ByteLength() != sizeof options.id.internal)
    Throw(info.Env(), Status(Code::INVALID_ARGUMENT, "an id of NCCL has 128 bytes"));
  memcpy(options.id.internal, id.Data(), sizeof options.id.internal);
  options.rank = info[2].As<Napi::Number>().Int32Value();
  options.ranks = info[3].As<Napi::Number>().Int32Value();
  std::shared_ptr<Communicator> communicator;
  ThrowIfError(info.Env(), Communicator::Open(std::move(options), &communicator));
  return ToExternal<Communicator>(info.Env(), std::move(communicator));
}

// broadcast(communicator, from: (External | null)[], to: External[], pieces: Float64Array, stallTimeoutMs):
// Promise<void>. `from` is null where another rank has the bytes. `pieces`, by those: offset in `from`, offset in `to`,
// length, root. See Communicator::Broadcast.
Napi::Value BroadcastJs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto communicator = FromExternal<Communicator>(info[0]);
  auto from = info[1].As<Napi::Array>(), to = info[2].As<Napi::Array>();
  auto numbers = info[3].As<Napi::Float64Array>();
  const double limit = std::ceil(info[4].As<Napi::Number>().DoubleValue());  // 0 would be over at once
  const std::chrono::milliseconds stall(static_cast<int64_t>(std::min(std::max(limit, 1.0), kForeverMs)));
  std::vector<BroadcastPiece> pieces;
  for (uint32_t i = 0; i < to.Length(); ++i) {
    Napi::HandleScope scope(env);
    auto number = [&](size_t which) { return static_cast<size_t>(numbers[4 * i + which]); };
    BroadcastPiece piece = {FromOptionalExternal<DeviceBuffer>(from.Get(i)),
                            FromExternal<DeviceBuffer>(to.Get(i)),
                            number(0),
                            number(1),
                            number(2),
                            static_cast<int>(number(3))};
    if (piece.from != nullptr) ThrowIfError(env, CheckRange(*piece.from, piece.from_offset, piece.length));
    ThrowIfError(env, CheckRange(*piece.to, piece.to_offset, piece.length));
    pieces.push_back(std::move(piece));
  }
  std::function<void(Status)> finish;
  Napi::Value promise = AsyncWork::Pending(env, &finish, nullptr, info[0]);
  communicator->Broadcast(std::move(pieces), stall, std::move(finish));
  return promise;
}

// abandonCommunicator(communicator). See Communicator::Abandon.
void AbandonCommunicator(const Napi::CallbackInfo& info) { FromExternal<Communicator>(info[0])->Abandon(); }

// closeCommunicator(communicator): Promise<void>. See Communicator::Close.
Napi::Value CloseCommunicator(const Napi::CallbackInfo& info) {
  return AsyncWork::Close(info.Env(), *FromExternal<Communicator>(info[0]));
}

}  // namespace

void ExportCommunicators(Napi::Env env, Napi::Object exports) {
  Export<ProbeNccl>(env, exports, "probeNccl");
  Export<NewNcclId>(env, exports, "newNcclId");
  Export<OpenCommunicator>(env, exports, "openCommunicator");
  Export<BroadcastJs>(env, exports, "broadcast");
  Export<AbandonCommunicator>(env, exports, "abandonCommunicator");
  Export<CloseCommunicator>(env, exports, "closeCommunicator");
}

}  // namespace fst
