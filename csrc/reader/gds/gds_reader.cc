#include "reader/gds/gds_reader.h"

#include <algorithm>
#include <cerrno>

#include "base/page.h"
#include "base/task_pool.h"
#include "device/kept_memory.h"
#include "reader/gds/cufile_driver.h"
#include "reader/gds/gds_file.h"

namespace fst {
namespace {

constexpr char kNoDirectPath[] =
    "there is no direct path from storage to the GPU (the nvidia-fs driver is not loaded and PCI peer-to-peer is not "
    "in use), so cuFile reads through the host";

// Ends one use of registered memory; `free` is called when cuFile no longer knows it. `bytes` count as staging if it is
// kept meanwhile.
void EndRegistration(const std::shared_ptr<GdsContext>& context, uint64_t base, std::function<void()> free,
                     size_t bytes) {
  cufile::RemoveUser(base);
  ReleaseMemory(
      [context, base] {
        context->device->MakeCurrentForRelease();
        return cufile::Deregister(*context->api, base);
      },
      std::move(free), bytes, &Metrics::Get().staging_bytes);
}

// The registration of an allocation that reads go straight into. Holds a reference, so that the memory is freed later.
class GdsTarget {
 public:
  GdsTarget(std::shared_ptr<GdsContext> context, std::shared_ptr<DeviceBuffer> buffer)
      : context_(std::move(context)), buffer_(std::move(buffer)) {}
  ~GdsTarget() {
    auto free = [buffer = buffer_] {};  // which counts by itself
    if (registered_) EndRegistration(context_, buffer_->address(), free, 0);
  }
  // Called by the first read, not by the I/O thread: registering pins the memory, which takes long. Any thread.
  Status Register() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (registered_) return Status::Ok();
    FST_RETURN_IF_ERROR(cufile::RegisterBuffer(*context_->api, buffer_->address(), buffer_->size()));
    registered_ = true;
    return Status::Ok();
  }

 private:
  std::shared_ptr<GdsContext> context_;
  std::shared_ptr<DeviceBuffer> buffer_;
  std::mutex mutex_;
  bool registered_ = false;
};

// Slots in device memory.
class GdsRing : public StagingMemory {
 public:
  GdsRing(std::shared_ptr<GdsContext> context, cuda::CUdeviceptr memory, uint64_t address, size_t size, bool registered)
      : StagingMemory(address, size, /*on_device=*/true),
        context_(std::move(context)),
        memory_(memory),
        registered_(registered) {}
  ~GdsRing() override {
    auto free = [device = context_->device, memory = memory_] { device->FreeMemory(memory); };
    if (registered_) {
      EndRegistration(context_, address(), free, size());
    } else {
      free();
    }
  }

 private:
  std::shared_ptr<GdsContext> context_;
  const cuda::CUdeviceptr memory_;
  const bool registered_;
};

class GdsReader : public Reader {
 public:
  explicit GdsReader(const GdsReaderOptions& options) : state_(std::make_shared<State>(options)) {
    needs_.offset_alignment = needs_.length_alignment = needs_.memory_alignment = kPage;
    needs_.chunk = std::max((options.chunk > 0 ? options.chunk : size_t{4} << 20) / kPage * kPage, kPage);
    // More than threads, so that a thread that has finished a read finds the next one queued.
    needs_.in_flight = state_->threads + 2;
    needs_.slots = state_->threads + 4;
    needs_.fills_host = false;
    needs_.fills_device = true;
    needs_.device_slots = true;
  }

  ~GdsReader() override {
    state_->bounce.reset();
    RetryReleases();  // the engine has released all it had
  }

  const ReaderNeeds& needs() const override { return needs_; }

  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) override {
    state_->queue = std::move(queue);
    state_->context->device = std::shared_ptr<CudaDevice>(device, device->cuda());
    if (state_->context->device == nullptr || device->host_accessible()) {
      return Status(Code::COPIER_UNAVAILABLE, "the copier \"gds\" reads into the memory of a GPU, the device is " +
                                                  device->name() + "; use copier: 'nogds', or device: 'cuda'");
    }
    return cufile::LoadCufile(&state_->context->api);
  }

  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    GdsContext& context = *state_->context;
    UniqueFd fd;
    // Without O_DIRECT, cuFile copies through its own buffers or refuses the file below.
    bool direct = false;
    FST_RETURN_IF_ERROR(OpenDirect(path, expected, &fd, &direct));
    FST_RETURN_IF_ERROR(context.device->MakeCurrent());
    void* handle = nullptr;
    std::string refusal;
    bool compatible = false;
    FST_RETURN_IF_ERROR(state_->Admit(path, &refusal, &compatible));
    if (refusal.empty()) FST_RETURN_IF_ERROR(RegisterFile(context, fd.get(), path, &handle, &refusal));
    auto file = std::make_shared<GdsFile>(path, expected, state_->context, std::move(fd), handle);
    file->compatible = compatible;
    if (handle == nullptr) state_->FallBack(*file, refusal);
    *out = std::move(file);
    return Status::Ok();
  }

  Status AllocateSlots(Device&, size_t bytes, std::unique_ptr<StagingMemory>* out) override {
    CudaDevice& device = *state_->context->device;
    FST_RETURN_IF_ERROR(device.MakeCurrent());
    cuda::CUdeviceptr memory = 0;
    FST_RETURN_IF_ERROR(device.AllocateMemory(bytes + kPage, &memory));  // aligned to 256 only
    uint64_t address = (memory + kPage - 1) / kPage * kPage;
    // While no driver is open, every file is read by the host.
    const bool driver_open = state_->driver_open;
    Status registered;
    if (driver_open) registered = cufile::RegisterBuffer(*state_->context->api, address, bytes);
    if (!registered.ok()) {
      device.FreeMemory(memory);
      return registered;
    }
    *out = std::make_unique<GdsRing>(state_->context, memory, address, bytes, driver_open);
    return Status::Ok();
  }

  std::shared_ptr<void> RegisterBuffer(const std::shared_ptr<DeviceBuffer>& buffer) override {
    return std::make_shared<GdsTarget>(state_->context, buffer);
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    return state_->pool.Post([state = state_, request = std::move(request), tag]() mutable {
      Status status = state->Read(request);
      request = ReadRequest();  // before the completion, as its receiver may count open files and registrations
      state->queue->Put({Completion::Kind::kRead, tag, std::move(status)});
    });
  }

  std::vector<Fallback> TakeFallbacks() override {
    std::lock_guard<std::mutex> lock(state_->mutex);
    return std::move(state_->fallbacks);
  }

 private:
  struct State {
    explicit State(const GdsReaderOptions& given)
        : options(given),
          threads(given.threads > 0 ? given.threads : 8),
          pool("fst-gds", threads),
          bounce(std::make_unique<GdsBounce>(context)) {}

    const GdsReaderOptions options;
    const int threads;
    std::shared_ptr<GdsContext> context = std::make_shared<GdsContext>();
    std::shared_ptr<CompletionQueue> queue;
    TaskPool pool;
    std::unique_ptr<GdsBounce> bounce;
    std::atomic<bool> driver_open{false};
    std::mutex mutex;  // guards fallbacks
    std::vector<Fallback> fallbacks;

    void Note(const std::string& path, const char* to, const std::string& reason) {
      std::lock_guard<std::mutex> lock(mutex);
      fallbacks.push_back({path, "gds", to, reason});
    }

    void FallBack(GdsFile& file, const std::string& reason) {
      if (!file.refused.exchange(true)) Note(file.path(), "nogds", reason);
    }

    // Decides whether cuFile may read files: its driver opens, and there is a direct path or the user chose 'gds'. If
    // not, `*refusal` says why. `*compatible`: cuFile will read through the host.
    Status Admit(const std::string& path, std::string* refusal, bool* compatible) {
      cufile::Mode mode = {};
      Status opened = cufile::OpenDriver(*context->api, &mode);
      if (!opened.ok()) {
        if (options.chosen || opened.code() != Code::COPIER_UNAVAILABLE) return opened.At(path);
        *refusal = opened.message();
        return Status::Ok();
      }
      driver_open = true;
      if (mode.direct) return Status::Ok();
      *compatible = options.chosen;
      if (!options.chosen) *refusal = kNoDirectPath;
      return Status::Ok();
    }

    // On a pool thread. When it returns, nothing writes to the destination any more.
    Status Read(const ReadRequest& request) {
      auto& file = static_cast<GdsFile&>(*request.file);
      FST_RETURN_IF_ERROR(context->device->MakeCurrent());
      bool refused = file.refused;
      Status status;
      if (!refused) status = ReadByCufile(request, file, &refused);
      if (refused) status = bounce->Read(file, request.offset, request.required, request.pieces.front().address);
      // A file that became shorter is FILE_CHANGED rather than UNEXPECTED_EOF: that names the reason.
      Status unchanged = file.CheckUnchanged();
      return unchanged.ok() ? status : unchanged;
    }

    Status ReadByCufile(const ReadRequest& request, GdsFile& file, bool* refused) {
      if (request.target != nullptr) FST_RETURN_IF_ERROR(static_cast<GdsTarget*>(request.target.get())->Register());
      const ReadPiece& piece = request.pieces.front();
      const auto base_offset = static_cast<off_t>(piece.address - piece.base);
      for (size_t done = 0; done < request.required;) {
        const size_t left = request.length - done;
        const auto at = static_cast<off_t>(request.offset + done);
        ssize_t got = context->api->Read(file.handle(), cufile::Pointer(piece.base), left, at,
                                         base_offset + static_cast<off_t>(done));
        int error = errno;
        if (got == -1 && error == EINTR) continue;
        if (got == 0) return EndedEarly(file, request.offset, done, request.required);
        if (got > 0 && static_cast<size_t>(got) <= left) {
          // Reported only now, since cuFile may still refuse a file at its first read.
          if (!file.served.exchange(true) && file.compatible)
            Note(file.path(), "gds in compatibility mode", kNoDirectPath);
          done += static_cast<size_t>(got);
          continue;
        }
        Status failed = got > 0 ? Status(Code::GDS_ERROR, Format("cuFileRead read %zd bytes instead of %zu", got, left))
                                : cufile::CufileApi::CheckRead(got, error);
        if (got < -5000 && cufile::IsRefusal(static_cast<int>(-got)) && !file.served) {
          FallBack(file, failed.message());
          *refused = true;
          return Status::Ok();
        }
        return Status(failed.code(), Format("%s: at offset %lld: %s", file.path().c_str(), static_cast<long long>(at),
                                            failed.message().c_str()))
            .At(file.path(), {}, at);
      }
      return Status::Ok();
    }
  };

  std::shared_ptr<State> state_;
  ReaderNeeds needs_;
};

}  // namespace

std::unique_ptr<Reader> NewGdsReader(const GdsReaderOptions& options) { return std::make_unique<GdsReader>(options); }

}  // namespace fst
