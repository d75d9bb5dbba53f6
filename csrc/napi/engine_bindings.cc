// Engines and loads for JavaScript.
#include <algorithm>
#include <atomic>
#include <deque>

#include "device/devices.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/env_state.h"
#include "napi/header_values.h"
#include "napi/packed_plan.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "reader/gds/gds_reader.h"
#include "reader/usrbio/usrbio_pool.h"
#include "reader/usrbio/usrbio_reader.h"
#include "transfer/engine.h"

namespace fst {
namespace {

// A load as JavaScript sees it: the transfer, and the promises that wait for it.
struct Load {
  std::shared_ptr<Transfer> transfer;
  std::shared_ptr<Dispatcher> dispatcher;
  std::atomic<bool> posted{false};  // a wake-up was posted and has not run yet
  // The environment's thread alone.
  bool allocates = true;                 // false: the plan's memory existed before
  size_t allowed = 0;                    // allocations that the window has reached
  bool news = false;                     // since the last promise was resolved
  std::weak_ptr<ExternalMemory> memory;  // once JavaScript has the load
  std::vector<Napi::Promise::Deferred> waiting;
};

}  // namespace

template <>
inline constexpr char kExternalName<Engine>[] = "an engine";
template <>
inline constexpr char kExternalName<MappedFile>[] = "a mapped file";
template <>
inline constexpr char kExternalName<Load>[] = "a load";
template <>
inline constexpr char kExternalName<Pace>[] = "a pace";
template <>
inline constexpr char kExternalName<usrbio::ShmReservation>[] = "a reservation";

namespace {

bool Flag(const Napi::Object& object, const char* name) { return object.Get(name).ToBoolean(); }

UsrbioReaderOptions UsrbioOptionsOf(const Napi::Object& options) {
  UsrbioReaderOptions usrbio;
  usrbio.mount_point = options.Get("mountPoint").ToString();
  usrbio.buffer_bytes = static_cast<size_t>(NumberOr(options, "bufferSize", 0));
  usrbio.chunk = static_cast<size_t>(NumberOr(options, "chunk", 0));
  usrbio.entries = static_cast<int>(NumberOr(options, "entries", 0));
  usrbio.io_depth = static_cast<int>(NumberOr(options, "ioDepth", usrbio.io_depth));
  usrbio.numa = NumberOr(options, "setNuma", 1) != 0;
  usrbio.block_bytes = static_cast<uint64_t>(NumberOr(options, "blockSize", 0));
  return usrbio;
}

// reserveThreeFs(device, reader: {bufferSize, chunk, entries, setNuma}): External, for createEngine's `reader.pages`.
// Opens the device and allocates pages for the reader's buffer, where none is kept that may do, on a worker.
Napi::Value ReserveThreeFs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto pages = std::make_shared<usrbio::ShmReservation>();
  std::string name = info[0].As<Napi::String>();
  UsrbioReaderOptions options = UsrbioOptionsOf(info[1].As<Napi::Object>());
  AsyncWork::Run(
      env,
      [pages, name, options] {
        if (!usrbio::ShmReservation::MayTakeFds()) return Status::Ok();
        std::shared_ptr<Device> device;
        if (!OpenDevice(name, /*unified=*/false, &device, options.numa).ok()) return Status::Ok();  // its load says it
        const size_t bytes = UsrbioBufferBytes(options);
        const int numa = options.numa ? device->numa_node() : -1;
        if (!usrbio::KeepsIdleChannel(bytes, numa)) pages->Fill(bytes, numa);
        return Status::Ok();
      },
      nullptr);
  return ToExternal<usrbio::ShmReservation>(env, std::move(pages));
}

// dropReservation(reservation): Promise<void>. Gives back what no engine has taken; on a worker, since to free pages
// takes long. Nothing is held afterwards.
Napi::Value DropReservation(const Napi::CallbackInfo& info) {
  return AsyncWork::Run(
      info.Env(),
      [pages = FromExternal<usrbio::ShmReservation>(info[0])] {
        pages->Drop();
        return Status::Ok();
      },
      nullptr);
}

Status MakeReader(const Napi::Object& options, std::unique_ptr<Reader>* out) {
  std::string kind = options.Get("kind").ToString();
  if (kind == "file") {
    FileReaderOptions file;
    file.threads = static_cast<int>(NumberOr(options, "threads", 0));
    file.direct = Flag(options, "direct");
    file.drop_cache = Flag(options, "dropCache");
    file.chunk = static_cast<size_t>(NumberOr(options, "chunk", 0));
    file.ring = Flag(options, "ring");
    *out = NewFileReader(file);
  } else if (kind == "gds") {
    GdsReaderOptions gds;
    gds.threads = static_cast<int>(NumberOr(options, "threads", 0));
    gds.chosen = Flag(options, "chosen");
    *out = NewGdsReader(gds);
  } else if (kind == "3fs") {
    UsrbioReaderOptions usrbio = UsrbioOptionsOf(options);
    usrbio.pages = FromOptionalExternal<usrbio::ShmReservation>(options.Get("pages"));
    *out = NewUsrbioReader(usrbio);
  } else if (kind == "fake") {
    FakeReaderOptions fake;
    fake.gb_per_second = NumberOr(options, "gbPerSecond", 0);
    fake.ms_per_io = NumberOr(options, "msPerIo", 0);
    fake.in_flight = static_cast<int>(NumberOr(options, "inFlight", fake.in_flight));
    fake.chunk = static_cast<size_t>(NumberOr(options, "chunk", static_cast<double>(fake.chunk)));
    fake.alignment = static_cast<size_t>(NumberOr(options, "alignment", 1));
    fake.fills_host = NumberOr(options, "fillsHost", 1) != 0;
    fake.reorder = Flag(options, "reorder");
    fake.fail_at = static_cast<int>(NumberOr(options, "failAt", 0));
    fake.short_at = static_cast<int>(NumberOr(options, "shortAt", 0));
    fake.stall_at = static_cast<int>(NumberOr(options, "stallAt", 0));
    *out = NewFakeReader(fake);
  } else {
    return Status(Code::COPIER_UNAVAILABLE, Format("there is no reader \"%s\" in this build", kind.c_str()));
  }
  return Status::Ok();
}

// Null without a limit: 0, Infinity. Less than 1 is one, too.
std::shared_ptr<Pace> PaceOf(double bytes_per_second) {
  if (!(bytes_per_second > 0 && bytes_per_second < 1e18)) return nullptr;
  return std::make_shared<Pace>(static_cast<uint64_t>(std::max(bytes_per_second, 1.0)));
}

// newPace(bytesPerSecond): External, for the engines of one loader, or null without a limit; see Pace
Napi::Value NewPace(const Napi::CallbackInfo& info) {
  auto pace = PaceOf(info[0].As<Napi::Number>().DoubleValue());
  return pace == nullptr ? info.Env().Null() : ToExternal<Pace>(info.Env(), std::move(pace));
}

// createEngine(devices, reader: {kind, …}, options: {alwaysStage, maxBytesPerSecond, pace, stallTimeoutMs,
// chunkBytes, converts, slotsAtOnce, pinsFiles, stagingLimit}): External; throws a status object. See Engine::Create.
Napi::Value CreateEngine(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::unique_ptr<Reader> reader;
  ThrowIfError(env, MakeReader(info[1].As<Napi::Object>(), &reader));
  auto object = info[2].As<Napi::Object>();
  EngineOptions options;
  options.always_stage = Flag(object, "alwaysStage");
  options.pace = FromOptionalExternal<Pace>(object.Get("pace"));
  if (options.pace == nullptr) options.pace = PaceOf(NumberOr(object, "maxBytesPerSecond", 0));
  options.stall_timeout =
      std::chrono::milliseconds(static_cast<int64_t>(std::min(NumberOr(object, "stallTimeoutMs", 90000), kForeverMs)));
  options.chunk_bytes = static_cast<uint64_t>(NumberOr(object, "chunkBytes", 0));
  options.converts = Flag(object, "converts");
  options.slots_at_once = Flag(object, "slotsAtOnce");
  options.pins_files = Flag(object, "pinsFiles");
  const double staging = NumberOr(object, "stagingLimit", 0);
  if (staging > 0) options.staging_limit = std::min(options.staging_limit, static_cast<uint64_t>(staging));
  auto given = info[0].As<Napi::Array>();
  std::vector<std::shared_ptr<Device>> devices;
  devices.reserve(given.Length());
  for (uint32_t i = 0; i < given.Length(); ++i) devices.push_back(FromExternal<Device>(given.Get(i)));
  std::shared_ptr<Engine> engine;
  ThrowIfError(env, Engine::Create(std::move(devices), std::move(reader), options, &engine));
  EnvState::Of(env).Track(engine);
  return ToExternal<Engine>(env, std::move(engine));
}

// newBudget(bytes): External, for the loads of one loader to one device; see MemoryBudget
Napi::Value NewBudget(const Napi::CallbackInfo& info) {
  const auto bytes = static_cast<uint64_t>(info[0].As<Napi::Number>().DoubleValue());
  return ToExternal<MemoryBudget>(info.Env(), std::make_shared<MemoryBudget>(bytes));
}

// budgetHeld(budget): bytes
Napi::Value BudgetHeld(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(FromExternal<MemoryBudget>(info[0])->held()));
}

// takeBudget(budget, bytes): boolean, see MemoryBudget::Reserve
Napi::Value TakeBudget(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), FromExternal<MemoryBudget>(info[0])->Reserve(SizeOf(info[1])));
}

// closeEngine(engine): Promise<void>, resolved when nothing is in flight any more.
Napi::Value CloseEngine(const Napi::CallbackInfo& info) {
  return AsyncWork::Close(info.Env(), *FromExternal<Engine>(info[0]));
}

// stagingBytes(engine, converts: boolean): bytes of staging that a load takes
Napi::Value StagingBytes(const Napi::CallbackInfo& info) {
  const uint64_t bytes = FromExternal<Engine>(info[0])->StagingBytes(info[1].ToBoolean());
  return Napi::Number::New(info.Env(), static_cast<double>(bytes));
}

// engineTurn(engine): a number that moves on while its I/O thread lives, and is odd while that is busy
Napi::Value EngineTurn(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(FromExternal<Engine>(info[0])->turn()));
}

// takeFallbacks(engine): {path, from, to, reason}[], files read in another way than asked since the last call
Napi::Value TakeFallbacks(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto list = FromExternal<Engine>(info[0])->TakeFallbacks();
  Napi::Array result = Napi::Array::New(env, list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const auto& [path, from, to, reason] = list[i];
    result[static_cast<uint32_t>(i)] = TextsToJs(env, {{"path", path}, {"from", from}, {"to", to}, {"reason", reason}});
  }
  return result;
}

// If a load's memory was held back, V8 hears of it, unless more is read: false. The environment's thread.
bool TellWhenIdle(const Load& load) {
  auto memory = load.memory.lock();
  if (memory != nullptr && !load.transfer->idle()) return false;
  if (memory != nullptr) memory->Tell();
  return true;
}

void Wake(const std::shared_ptr<Load>& load) {
  if (load->posted.exchange(true)) return;
  load->dispatcher->Post([load](Napi::Env env) {
    load->posted.store(false);
    load->news = load->waiting.empty();
    for (auto& deferred : load->waiting) deferred.Resolve(env.Undefined());
    load->waiting.clear();
  });
}

// The arguments of startTransfer, taken from JavaScript.
struct StartArgs {
  explicit StartArgs(const Napi::CallbackInfo& info)
      : engine(FromExternal<Engine>(info[0])), packed(info[1].As<Napi::Object>()), load(std::make_shared<Load>()) {
    auto object = info[2].As<Napi::Object>();
    load->dispatcher = EnvState::Of(info.Env()).dispatcher();
    options.window = static_cast<uint32_t>(NumberOr(object, "window", UINT32_MAX));
    options.collect_ready = Flag(object, "collectReady");
    options.whole = Flag(object, "whole");
    options.device = static_cast<uint32_t>(NumberOr(object, "device", 0));
    options.budget = FromOptionalExternal<MemoryBudget>(object.Get("budget"));
    Napi::Value memory = info[1].As<Napi::Object>().Get("memory");
    for (uint32_t i = 0; memory.IsArray() && i < memory.As<Napi::Array>().Length(); ++i) {
      options.preallocated.push_back(FromOptionalExternal<DeviceBuffer>(memory.As<Napi::Array>().Get(i)));
    }
    Napi::Value mapped = info[1].As<Napi::Object>().Get("mapped");
    for (uint32_t i = 0; mapped.IsArray() && i < mapped.As<Napi::Array>().Length(); ++i) {
      options.mapped.push_back(FromOptionalExternal<MappedFile>(mapped.As<Napi::Array>().Get(i)));
    }
    double timeout = NumberOr(object, "timeoutMs", 0);
    if (timeout > 0 && timeout < kForeverMs)
      options.deadline = Clock::now() + std::chrono::microseconds(static_cast<int64_t>(timeout * 1000));
    load->allocates = options.preallocated.empty();
    // Weak, because the load owns the transfer.
    options.notify = [weak = std::weak_ptr<Load>(load)] {
      if (auto alive = weak.lock()) Wake(alive);
    };
  }

  // The environment's thread, before Start: bytes that the transfer may allocate at once, and may map.
  uint64_t AllowedBytes(uint64_t* mapped) const {
    const uint64_t taken = packed.AllowedBytes(options.window, &load->allowed, mapped);
    if (!load->allocates) *mapped = 0;
    return load->allocates ? taken : 0;
  }

  // Any thread, once.
  Status Start() {
    Plan plan;
    FST_RETURN_IF_ERROR(packed.Make(&plan));
    return engine->Start(std::move(plan), std::move(options), &load->transfer);
  }

  std::shared_ptr<Engine> engine;
  PackedPlan packed;
  TransferOptions options;
  std::shared_ptr<Load> load;
};

// Growth of external memory from which V8 collects garbage at once.
constexpr uint64_t kCollectedGrowth = 64 << 20;
constexpr size_t kAskedAtOnce = 64;
// Longer than a collection of a small heap takes, short beside the reading of as much as that.
constexpr auto kCollectionPatience = std::chrono::milliseconds(50);

// startTransfer(engine, plan, options: {window, collectReady, whole, timeoutMs, device, budget}): Promise<External>;
// rejects with a status object. On a worker, because a million tensors take 50 ms. The plan's arrays must not change
// until it settles.
Napi::Value StartTransfer(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto args = std::make_shared<StartArgs>(info);
  // Where as much is kept already, some of it may be garbage, which V8 collects when it hears of more: to wait for that
  // keeps a model that is loaded again and again from being in memory twice. Where hardly anything is kept V8 finds
  // nothing, and hears of the load when that has ended, a second has passed or another one begins, and of tensors that
  // are out when it goes on to more memory. Elsewhere the load begins while V8 collects.
  // Of so many at most, as very many loads may be under way: those that still read are asked last next time.
  auto& tellers = EnvState::Of(env).tellers();
  for (size_t left = std::min(tellers.size(), kAskedAtOnce); left > 0; --left) {
    std::function<bool()> tell = std::move(tellers.front());
    tellers.pop_front();
    if (!tell()) tellers.push_back(std::move(tell));
  }
  uint64_t mapped = 0;
  const uint64_t taken = args->AllowedBytes(&mapped), bytes = taken + ExternalMemory::CountOfMapped(mapped);
  const uint64_t kept = ExternalBytes(env);
  const bool waits = taken >= kCollectedGrowth && kept >= taken;
  std::shared_future<void> collected;
  if (waits) collected = NextCollection(env);
  auto memory = ExternalMemory::Count(env, waits ? bytes : 0);
  const bool held_back = !waits && kept < kCollectedGrowth;
  if (held_back) memory->HoldBack();
  Napi::Array keep = Napi::Array::New(env, 2);
  keep[0U] = info[1];
  keep[1U] = ToExternal<ExternalMemory>(env, memory);
  Napi::Value promise = AsyncWork::Run(
      env,
      [args, collected] {
        if (collected.valid()) collected.wait_for(kCollectionPatience);
        return args->Start();
      },
      // Weak, since this may be destroyed on any thread. `keep` is not finalized before it has run.
      [args, held_back, weak = std::weak_ptr<ExternalMemory>(memory)](Napi::Env on) {
        args->load->memory = weak;
        if (held_back) {
          EnvState::Of(on).tellers().emplace_back([weak = std::weak_ptr<Load>(args->load)] {
            auto load = weak.lock();
            return load == nullptr || TellWhenIdle(*load);
          });
        }
        return ToExternal<Load>(on, args->load, weak.lock());
      },
      keep);
  if (!waits) memory->Add(bytes);
  return promise;
}

// pollTransfer(load, out: Float64Array(8)): [readyPrefix, readyCount, bytesLoaded, maxInFlight, drained, failed,
// bytesRead, waitsFor]
void PollTransfer(const Napi::CallbackInfo& info) {
  const Transfer& transfer = *FromExternal<Load>(info[0])->transfer;
  auto out = info[1].As<Napi::Float64Array>();
  out[0] = static_cast<double>(transfer.ready_prefix());
  out[1] = static_cast<double>(transfer.ready_count());
  out[2] = static_cast<double>(transfer.bytes_loaded());
  out[3] = transfer.max_in_flight();
  out[4] = transfer.drained() ? 1 : 0;
  out[5] = transfer.status().ok() ? 0 : 1;
  out[6] = static_cast<double>(transfer.bytes_read());
  out[7] = static_cast<double>(transfer.waits_for());
}

// transferError(load): {code, message, …} | null
Napi::Value TransferError(const Napi::CallbackInfo& info) {
  Status status = FromExternal<Load>(info[0])->transfer->status();
  return status.ok() ? info.Env().Null() : Napi::Value(StatusToJs(info.Env(), status));
}

// waitTransfer(load): Promise<void>, resolved when something changed since the last one, or the load was cancelled
Napi::Value WaitTransfer(const Napi::CallbackInfo& info) {
  auto& load = FromExternal<Load>(info[0]);
  auto deferred = Napi::Promise::Deferred::New(info.Env());
  if (load->news) {
    load->news = false;
    deferred.Resolve(info.Env().Undefined());
  } else {
    load->waiting.push_back(deferred);
  }
  return deferred.Promise();
}

// takeReady(load): Uint32Array of items, in the order in which they became ready
Napi::Value TakeReady(const Napi::CallbackInfo& info) {
  std::vector<uint32_t> ready = FromExternal<Load>(info[0])->transfer->TakeReady();
  auto result = Napi::Uint32Array::New(info.Env(), ready.size());
  std::copy(ready.begin(), ready.end(), result.Data());
  return result;
}

// takeAllocation(load, index): External | null; see Transfer::TakeAllocation
Napi::Value TakeAllocation(const Napi::CallbackInfo& info) {
  auto& [load, memory] = HeldBy<Load>(info[0]);
  const uint32_t index = info[1].As<Napi::Number>().Uint32Value();
  auto buffer = load->transfer->TakeAllocation(index);
  if (buffer == nullptr) return info.Env().Null();
  const size_t size = buffer->size();
  const bool mapped = load->transfer->plan().allocations[index].is_mapped();
  return ToExternal<DeviceBuffer>(info.Env(), std::move(buffer), memory->Split(size, mapped));
}

// setWindow(engine, load, batches): batches below this number may be loaded
void SetWindow(const Napi::CallbackInfo& info) {
  auto& [load, memory] = HeldBy<Load>(info[1]);
  const uint32_t window = info[2].As<Napi::Number>().Uint32Value();
  FromExternal<Engine>(info[0])->SetWindow(load->transfer, window);
  const auto& allocations = load->transfer->plan().allocations;
  uint64_t bytes = 0;
  for (size_t& i = load->allowed; i < allocations.size() && allocations[i].batch < window; ++i)
    bytes += allocations[i].is_mapped() ? ExternalMemory::CountOfMapped(allocations[i].size) : allocations[i].size;
  if (bytes > 0) memory->TellParts();
  if (load->allocates) memory->Add(bytes);
}

// tellMemory(load): boolean, whether V8 has heard of the load's memory: not while more of it is read
Napi::Value TellMemory(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), TellWhenIdle(*FromExternal<Load>(info[0])));
}

// cancelTransfer(engine, load): its allocations are freed when its last read and copy have ended. Who waits for it is
// woken, also when the I/O thread hangs.
void CancelTransfer(const Napi::CallbackInfo& info) {
  auto& [load, memory] = HeldBy<Load>(info[1]);
  FromExternal<Engine>(info[0])->Cancel(load->transfer, Status(Code::CLOSED, "the load was cancelled"));
  memory->Clear();
  memory->Tell();
  Wake(load);
}

}  // namespace

void ExportEngine(Napi::Env env, Napi::Object exports) {
  Export<ReserveThreeFs>(env, exports, "reserveThreeFs");
  Export<DropReservation>(env, exports, "dropReservation");
  Export<CreateEngine>(env, exports, "createEngine");
  Export<NewBudget>(env, exports, "newBudget");
  Export<TakeBudget>(env, exports, "takeBudget");
  Export<BudgetHeld>(env, exports, "budgetHeld");
  Export<NewPace>(env, exports, "newPace");
  Export<CloseEngine>(env, exports, "closeEngine");
  Export<StagingBytes>(env, exports, "stagingBytes");
  Export<EngineTurn>(env, exports, "engineTurn");
  Export<TakeFallbacks>(env, exports, "takeFallbacks");
  Export<StartTransfer>(env, exports, "startTransfer");
  Export<PollTransfer>(env, exports, "pollTransfer");
  Export<TransferError>(env, exports, "transferError");
  Export<WaitTransfer>(env, exports, "waitTransfer");
  Export<TakeReady>(env, exports, "takeReady");
  Export<TakeAllocation>(env, exports, "takeAllocation");
  Export<SetWindow>(env, exports, "setWindow");
  Export<TellMemory>(env, exports, "tellMemory");
  Export<CancelTransfer>(env, exports, "cancelTransfer");
}

}  // namespace fst
