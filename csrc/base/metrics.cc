#include "base/metrics.h"

namespace fst {

Metrics& Metrics::Get() {
  static Metrics* metrics = new Metrics;
  return *metrics;
}

}  // namespace fst
