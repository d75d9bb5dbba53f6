// What a session is created with, translated into ONNX Runtime's own options.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ort/value.h"

namespace fst::ort {

// A weight over memory of ours: an initializer of the model, or an input that every run is fed.
struct Weight {
  std::string name;
  TensorSource source;
  bool is_input = false;
};

// The bytes of a file of external data, under the name that the model has for it.
struct ExternalFile {
  std::string name;
  void* data;
  size_t bytes;
};

// -1 and empty mean ONNX Runtime's default. What it points at is the caller's.
struct SessionConfig {
  Place place;
  std::string model_name;  // for messages
  std::string model_path;  // empty: the model's bytes are in `model`
  const void* model = nullptr;
  size_t model_bytes = 0;
  std::vector<Weight> weights;
  std::vector<ExternalFile> external_files;

  int intra_threads = -1, inter_threads = -1;
  int optimization = -1;  // GraphOptimizationLevel: 0, 1, 2, 3 (layout), 99
  int parallel = -1;
  int cpu_arena = -1, memory_pattern = -1;
  int log_severity = -1, log_verbosity = -1;
  std::string log_id, optimized_path, profile_prefix;
  std::vector<std::pair<std::string, int64_t>> free_dimensions;
  std::vector<std::pair<std::string, std::string>> entries;           // session configuration
  std::vector<std::pair<std::string, std::string>> provider_options;  // of the CUDA provider
};

// Checks that the files of ONNX Runtime's provider for a place exist; loads nothing. DEVICE_UNAVAILABLE says which is
// missing and how to get it.
Status CheckProvider(const Place& place);

// `values` are those of the weights, in their order, and must outlive the session. Errors as CheckProvider, and
// INVALID_ARGUMENT for a weight on another device than the session's.
Status MakeSessionOptions(const SessionConfig& config, OwnedSessionOptions* out,
                          std::vector<std::shared_ptr<Value>>* values);

}  // namespace fst::ort
