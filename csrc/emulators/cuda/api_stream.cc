// The driver's functions for streams and events.
#include "emulators/cuda/emulator.h"

namespace fst::cuda {

using emu::Call;
using emu::Operation;

namespace {

// Handles are numbers that were never used before: a stale one is always caught, and following one crashes.
template <class Handle>
Handle NewHandle(emu::Emulator& emulator) {
  return reinterpret_cast<Handle>(emulator.next_handle += 16);
}

}  // namespace

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  Call call("cuStreamCreate", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (stream == nullptr || flags > kStreamNonBlocking) return call.Refuse(kInvalidValue, "flags %#x", flags);
  *stream = NewHandle<CUstream>(call.emulator);
  call.emulator.streams[*stream] = call.emulator.NewStream(call.context, flags);
  return kSuccess;
}

CUresult cuStreamDestroy_v2(CUstream handle) {
  Call call("cuStreamDestroy_v2", Call::kContext, Call::kRelease);
  CUresult error = call.error;
  if (error != kSuccess && !call.lost()) return error;
  if (handle == nullptr) return call.Misuse(kInvalidHandle, "of the null stream");
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return error != kSuccess ? error : call.error;
  if (!stream->queue.empty() && !call.lost()) {
    CUresult refused = call.Misuse(kSuccess, "of %p while %zu operations on it are pending", static_cast<void*>(handle),
                                   stream->queue.size());
    if (refused != kSuccess) return refused;
  }
  call.emulator.streams.erase(handle);
  call.emulator.StopStream(call.lock, std::move(stream));
  return error != kSuccess ? error : call.late;
}

CUresult cuStreamSynchronize(CUstream handle) {
  Call call("cuStreamSynchronize", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  call.emulator.changed.wait(call.lock, [&] { return stream->queue.empty(); });
  return call.context->sticky;
}

CUresult cuStreamQuery(CUstream handle) {
  Call call("cuStreamQuery", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  return stream->queue.empty() ? kSuccess : kNotReady;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
  Call call("cuStreamWaitEvent", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (flags != 0) return call.Refuse(kInvalidValue, "flags %#x, expected 0", flags);
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  std::shared_ptr<emu::Event> event = call.FindEvent(event_handle);
  if (event == nullptr) return call.error;
  if (event->mark == nullptr || event->mark->done) return kSuccess;
  Operation wait;
  wait.kind = Operation::kWait;
  wait.wait_for = event->mark;
  call.emulator.Issue(stream, std::move(wait));
  return kSuccess;
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
  Call call("cuEventCreate", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (event == nullptr || flags > 3) return call.Refuse(kInvalidValue, "flags %#x", flags);
  *event = NewHandle<CUevent>(call.emulator);
  auto made = std::make_shared<emu::Event>();
  made->context = call.context;
  call.emulator.events[*event] = std::move(made);
  call.emulator.ReportLeaksAtExit();
  return kSuccess;
}

CUresult cuEventDestroy_v2(CUevent handle) {
  Call call("cuEventDestroy_v2", Call::kContext, Call::kRelease);
  CUresult error = call.error;
  if (error != kSuccess && !call.lost()) return error;
  std::shared_ptr<emu::Event> event = call.FindEvent(handle);
  if (event == nullptr) return error != kSuccess ? error : call.error;
  if (event->mark != nullptr && !event->mark->done && !call.lost()) {
    CUresult refused = call.Misuse(kSuccess, "of %p, which is recorded and not reached", static_cast<void*>(handle));
    if (refused != kSuccess) return refused;
  }
  call.emulator.events.erase(handle);
  return error != kSuccess ? error : call.late;
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
  Call call("cuEventRecord", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Event> event = call.FindEvent(handle);
  if (event == nullptr) return call.error;
  std::shared_ptr<emu::Stream> stream = call.FindStream(stream_handle);
  if (stream == nullptr) return call.error;
  event->mark = call.emulator.Issue(stream, Operation{});
  return kSuccess;
}

// An event that was never recorded counts as reached, as with the driver.
CUresult cuEventQuery(CUevent handle) {
  Call call("cuEventQuery", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Event> event = call.FindEvent(handle);
  if (event == nullptr) return call.error;
  return event->mark == nullptr || event->mark->done ? kSuccess : kNotReady;
}

CUresult cuEventSynchronize(CUevent handle) {
  Call call("cuEventSynchronize", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Event> event = call.FindEvent(handle);
  if (event == nullptr) return call.error;
  if (event->mark != nullptr) call.emulator.WaitFor(call.lock, std::shared_ptr<emu::Mark>(event->mark));
  return call.context->sticky;
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* user_data) {
  Call call("cuLaunchHostFunc", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (function == nullptr) return call.Refuse(kInvalidValue, "no function");
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  Operation host;
  host.kind = Operation::kHostFunction;
  host.function = function;
  host.argument = user_data;
  call.emulator.Issue(stream, std::move(host));
  return kSuccess;
}

}  // namespace fst::cuda
