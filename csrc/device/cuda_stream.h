// The asynchronous copies of one engine on one GPU: a CUDA stream, an event after the copies of each Submit, and a
// thread that waits for the events in order.
#pragma once
#include "device/cuda_device.h"

namespace fst {

class CudaStream : public CopyStream {
 public:
  static Status Create(std::shared_ptr<CudaDevice> device, std::shared_ptr<CompletionQueue> queue,
                       std::unique_ptr<CopyStream>* out);
  ~CudaStream() override;
  Status Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) override;

 private:
  struct State;
  explicit CudaStream(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace fst
