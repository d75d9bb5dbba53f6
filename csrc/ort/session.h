// One ONNX Runtime session: made, run (several at once) and closed.
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
  int64_t size;      // -1 when open
  std::string name;  // of an open dimension, may be empty
};
struct Port {
  std::string name;
  bool tensor = true;
  int type = kUndefined;
  std::vector<Dimension> shape;
};

struct Feed {
  std::string name;
  std::shared_ptr<Value> value;  // an output of an earlier run; or
  TensorSource source;
};
struct Fetch {
  std::string name;
  bool on_device = false;  // leave it where the session runs
  bool given = false;      // write it into `value` or `source`
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
  // Blocks for as long as ONNX Runtime optimizes the graph; not on the event loop's thread. What `config` points at is
  // not used any more on return, but the initializers' memory, of which the session holds a reference each. CLOSED when
  // `control` (may be null) stopped it.
  static Status Create(const SessionConfig& config, Control* control, std::shared_ptr<Session>* out);
  // Stops nothing and waits for nothing: runs hold a reference.
  ~Session();

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const Place& place() const { return place_; }

  // Blocking, any thread but the event loop's, several at once. On OK `results` has one value a fetch, in its order.
  // CLOSED after Close, and for runs that Close ended. INVALID_ARGUMENT for devices that do not fit, found before ONNX
  // Runtime is called, and for names, types and shapes that do not.
  Status Run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, const RunConfig& config,
             Control* control, std::vector<std::shared_ptr<Value>>* results);

  // No run starts any more and those in progress are told to end; `done` is called once the last one has and the
  // session's memory was given up, on any thread; it may be null. May be called again.
  void Close(std::function<void()> done);

 private:
  Session() = default;
  Status ReadPorts();
  Status RunBound(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, RunOptions* options,
                  std::vector<std::shared_ptr<Value>>* results);
  Status TakeResults(IoBinding* binding, const std::vector<Fetch>& fetches,
                     const std::vector<std::shared_ptr<Value>>& held, std::vector<std::shared_ptr<Value>>* results);
  Status CheckPlace(const char* what, const std::string& name, const Value& value) const;
  void Free();

  Place place_;
  std::vector<Port> inputs_, outputs_;
  std::set<std::string> input_names_;            // with the initializers that a caller may override
  std::vector<std::shared_ptr<Value>> weights_;  // after session_ is gone
  OwnedSession session_;

  std::mutex mutex_;  // guards what follows
  bool closed_ = false, freeing_ = false, freed_ = false;
  std::multiset<Control*> running_;
  std::vector<std::function<void()>> closing_;
};

}  // namespace fst::ort
