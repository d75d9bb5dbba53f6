#include "ort/session_options.h"

#include <unistd.h>

namespace fst::ort {

Status CheckProvider(const Place& place) {
  if (!place.cuda) return Status::Ok();
  const std::string& library = TheLibrary().path;
  std::string folder = library.substr(0, library.rfind('/') + 1);
  for (const char* file : {"libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"}) {
    if (access((folder + file).c_str(), R_OK) != 0) {
      return Status(Code::DEVICE_UNAVAILABLE,
                    Format("a session on %s needs %s%s, which is not there: onnxruntime-node does not bring it along, "
                           "its install script downloads it (in your project: ONNXRUNTIME_NODE_INSTALL=cuda12 npm "
                           "rebuild onnxruntime-node --ignore-scripts=false); or run on device: 'cpu'",
                           place.ToString().c_str(), folder.c_str(), file))
          .At(folder + file);
    }
  }
  return Status::Ok();
}

namespace {

Status AppendCuda(const SessionConfig& config, SessionOptions* options) {
  FST_RETURN_IF_ERROR(CheckProvider(config.place));
  const std::string doing = "set up the CUDA provider for " + config.place.ToString();
  OwnedCudaOptions cuda;
  FST_RETURN_IF_ORT_ERROR(Ort().CreateCUDAProviderOptions(cuda.out()), doing);
  std::string ordinal = std::to_string(config.place.ordinal);
  std::vector<const char*> keys{"device_id"}, values{ordinal.c_str()};
  for (const auto& [key, value] : config.provider_options) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  FST_RETURN_IF_ORT_ERROR(Ort().UpdateCUDAProviderOptions(cuda.get(), keys.data(), values.data(), keys.size()), doing);
  Status appended = FromOrt(
      Ort().SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda.get()),
      doing + " (it needs the CUDA runtime, cuBLAS and cuDNN of the version that onnxruntime-node was built for)");
  return appended.ok() ? appended : Status(Code::DEVICE_UNAVAILABLE, appended.message());
}

Status AddWeights(const SessionConfig& config, SessionOptions* options, std::vector<std::shared_ptr<Value>>* values) {
  for (const Weight& weight : config.weights) {
    std::shared_ptr<Value> value;
    FST_RETURN_IF_ERROR(Value::Make(weight.source, weight.name, &value));
    if (!(value->place() == config.place)) {
      return Status(Code::INVALID_ARGUMENT,
                    Format("weight \"%s\" is on %s, but the session runs on %s: load the weights with device: '%s'",
                           weight.name.c_str(), value->place().ToString().c_str(), config.place.ToString().c_str(),
                           config.place.ToString().c_str()))
          .At({}, weight.name);
    }
    if (!weight.is_input) {
      FST_RETURN_IF_ORT_ERROR(Ort().AddInitializer(options, weight.name.c_str(), value->get()),
                              "use the memory of weight \"" + weight.name + "\"");
    }
    values->push_back(std::move(value));
  }
  if (config.external_files.empty()) return Status::Ok();
  std::vector<const char*> names;
  std::vector<char*> contents;
  std::vector<size_t> lengths;
  for (const ExternalFile& file : config.external_files) {
    names.push_back(file.name.c_str());
    contents.push_back(static_cast<char*>(file.data));
    lengths.push_back(file.bytes);
  }
  return FromOrt(Ort().AddExternalInitializersFromFilesInMemory(options, names.data(), contents.data(), lengths.data(),
                                                                names.size()),
                 "use externalData");
}

}  // namespace

Status MakeSessionOptions(const SessionConfig& config, OwnedSessionOptions* out,
                          std::vector<std::shared_ptr<Value>>* values) {
  const Functions& ort = Ort();
  FST_RETURN_IF_ORT_ERROR(ort.CreateSessionOptions(out->out()), "make session options");
  SessionOptions* options = out->get();
  Status status;
  // Keeps the first failure.
  auto set = [&](const char* name, OrtStatus* result) {
    Status done = FromOrt(result, std::string("set the session option ") + name);
    if (status.ok()) status = std::move(done);
  };
  if (config.intra_threads >= 0) set("intraOpNumThreads", ort.SetIntraOpNumThreads(options, config.intra_threads));
  if (config.inter_threads >= 0) set("interOpNumThreads", ort.SetInterOpNumThreads(options, config.inter_threads));
  if (config.optimization >= 0) {
    set("graphOptimizationLevel", ort.SetSessionGraphOptimizationLevel(options, config.optimization));
  }
  if (config.parallel >= 0) set("executionMode", ort.SetSessionExecutionMode(options, config.parallel));
  if (config.cpu_arena >= 0) {
    set("enableCpuMemArena", config.cpu_arena ? ort.EnableCpuMemArena(options) : ort.DisableCpuMemArena(options));
  }
  if (config.memory_pattern >= 0) {
    set("enableMemPattern", config.memory_pattern ? ort.EnableMemPattern(options) : ort.DisableMemPattern(options));
  }
  if (config.log_severity >= 0) set("logSeverityLevel", ort.SetSessionLogSeverityLevel(options, config.log_severity));
  if (config.log_verbosity >= 0) {
    set("logVerbosityLevel", ort.SetSessionLogVerbosityLevel(options, config.log_verbosity));
  }
  if (!config.log_id.empty()) set("logId", ort.SetSessionLogId(options, config.log_id.c_str()));
  if (!config.optimized_path.empty()) {
    set("optimizedModelFilePath", ort.SetOptimizedModelFilePath(options, config.optimized_path.c_str()));
  }
  if (!config.profile_prefix.empty())
    set("enableProfiling", ort.EnableProfiling(options, config.profile_prefix.c_str()));
  for (const auto& [name, value] : config.free_dimensions) {
    set("freeDimensionOverrides", ort.AddFreeDimensionOverrideByName(options, name.c_str(), value));
  }
  for (const auto& [key, value] : config.entries) {
    set(key.c_str(), ort.AddSessionConfigEntry(options, key.c_str(), value.c_str()));
  }
  FST_RETURN_IF_ERROR(status);
  // Before the provider, so that a mismatch is found on machines without one.
  FST_RETURN_IF_ERROR(AddWeights(config, options, values));
  return config.place.cuda ? AppendCuda(config, options) : Status::Ok();
}

}  // namespace fst::ort
