// One ONNX Runtime session: created, run (several runs at a time) and closed.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ort/session_options.h"
#include "ort/work.h"

namespace fst::ort {

struct Dimension {
  int64_t size;      // -1 for a symbolic dimension
  std::string name;  // of a symbolic dimension; may be empty
};
// An input or an output.
struct Port {
  std::string name;
  bool tensor = true;
  int type = kUndefined;
  std::vector<Dimension> shape;
};

struct Feed {
  std::string name;
  std::shared_ptr<Value> value;  // an output of an earlier run; null for `source`
  TensorSource source;
};
struct Fetch {
  std::string name;
  bool on_device = false;  // leave the output on the session's device
  bool given = false;      // write the output into `value` or `source`
  std::shared_ptr<Value> value;
  TensorSource source;
};
struct RunConfig {
  int log_severity = -1, log_verbosity = -1;
  std::string tag;
  std::vector<std::pair<std::string, std::string>> entries;
};

class Session {
 public:
  // Blocks while ONNX Runtime optimizes the graph; not on the event loop's thread. On return, of what `config` points
  // at only the weights' allocations are still used; the session owns a reference to each. CLOSED when `control`
  // (may be null) stopped it.
  static Status Create(const SessionConfig& config, Control* control, std::shared_ptr<Session>* out);
  // No run is in progress then: runs hold a reference.
  ~Session();

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const Place& place() const { return place_; }

  // Blocks; any thread but the event loop's, several runs at a time. On OK `results` has one value per fetch, in order.
  // CLOSED after Close, and for runs that Close ended. INVALID_ARGUMENT for a tensor on another device (found before
  // ONNX Runtime is called), and for wrong names, types and shapes.
  Status Run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, const RunConfig& config,
             Control* control, std::vector<std::shared_ptr<Value>>* results);

  // Refuses new runs and ends those in progress. When the last has ended and the session's memory is free, `done` (may
  // be null) is called, on any thread. May be called again.
  void Close(std::function<void()> done);

 private:
  Session() = default;
  Status ReadPorts();
  Status RunBound(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, RunOptions* options,
                  std::vector<std::shared_ptr<Value>>* results);
  Status TakeResults(IoBinding* binding, const std::vector<Fetch>& fetches,
                     const std::vector<std::shared_ptr<Value>>& held, std::vector<std::shared_ptr<Value>>* results);
  // An output may lie in the memory of a weight or of what is `held`. On the host it is copied, since the caller may
  // write to it, and so are small ones; on a device it keeps the original alive.
  Status Detach(bool on_device, const std::vector<std::shared_ptr<Value>>& held, std::shared_ptr<Value>* value) const;
  Status CheckPlace(const char* what, const std::string& name, const Value& value) const;
  void FeedAlways(const std::vector<Weight>& weights);  // those that are inputs; weights_ has their values
  void Free();

  Place place_;
  std::vector<Port> inputs_, outputs_;           // without the weights that are inputs
  std::set<std::string> input_names_;            // with those, and the initializers that a caller may override
  std::vector<Feed> always_fed_;                 // the weights that are inputs
  std::vector<std::shared_ptr<Value>> weights_;  // session_ uses them: destroyed after it
  OwnedSession session_;

  std::mutex mutex_;  // guards what follows
  bool closed_ = false, freeing_ = false, freed_ = false;
  std::multiset<Control*> running_;
  std::vector<std::function<void()>> closing_;
};

}  // namespace fst::ort
