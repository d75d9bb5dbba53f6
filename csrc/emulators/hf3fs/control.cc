// What only the emulator exports: settings, counters and losses at will, and the checks at load and at exit.
#include <cstdio>
#include <cstring>

#include "emulators/hf3fs/engine.h"
#include "emulators/hf3fs/mounts.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using emu::Engine;
using Lock = std::unique_lock<std::mutex>;

// Changes one setting (settings.h, lower-case names). 0, or -1 for an unknown name or a bad value.
EXPORT int fst_emu_hf3fs_set(const char* name, const char* value) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  emu::Settings changed = engine.settings;
  if (!emu::Set(&changed, engine.counters, name, value)) return -1;
  engine.settings = changed;
  return engine.Apply() ? 0 : -1;
}

// Brings dead and stopped daemons back, and sets every setting to what the environment says.
EXPORT void fst_emu_hf3fs_reset() {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  emu::ReviveDaemons();
  emu::ContinueDaemons();
  engine.settings = emu::FromEnvironment();
  engine.Apply();
}

// A counter: ios, jobs, bytes, submits, waits, eagain, in_flight, max_in_flight (since load); rings, iovs, fds (now);
// or the number of calls of a function, by its name without hf3fs_. 0 for what is unknown.
EXPORT uint64_t fst_emu_hf3fs_stat(const char* name) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  engine.iovs.Prune(lock);
  const emu::Counters& c = engine.counters;
  const struct {
    const char* name;
    uint64_t value;
  } table[] = {{"ios", c.ios},
               {"jobs", c.jobs},
               {"bytes", c.bytes},
               {"submits", c.submits},
               {"waits", c.waits},
               {"eagain", c.eagain},
               {"in_flight", c.in_flight},
               {"max_in_flight", c.max_in_flight},
               {"rings", engine.rings.size()},
               {"iovs", engine.iovs.size()},
               {"fds", engine.files.size()}};
  for (const auto& row : table) {
    if (strcmp(row.name, name) == 0) return row.value;
  }
  auto calls = c.calls.find(name);
  return calls == c.calls.end() ? 0 : calls->second;
}

// The links of all rings of this process vanish: what is in flight never completes.
EXPORT void fst_emu_hf3fs_lose_rings() {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  for (const auto& ring : engine.rings) ring->lost = emu::RemoveLink(ring->link) || ring->lost;
}

// The daemon of `mount` dies, for all processes.
EXPORT void fst_emu_hf3fs_kill_daemon(const char* mount) {
  Lock lock(Engine::Get().mutex);
  emu::KillDaemon(mount);
}

// Daemons that this process killed are back; rings and iovs have to be made anew, and files be opened and registered.
EXPORT void fst_emu_hf3fs_revive() {
  Lock lock(Engine::Get().mutex);
  emu::ReviveDaemons();
}

// The daemon of `mount` is stopped (SIGSTOP): it answers nothing, and no io completes.
EXPORT void fst_emu_hf3fs_stop_daemon(const char* mount) { emu::StopDaemon(mount); }

// Stopped daemons go on.
EXPORT void fst_emu_hf3fs_continue() { emu::ContinueDaemons(); }

namespace {

__attribute__((constructor)) void Load() { Engine::Get(); }

__attribute__((destructor)) void Exit() {
  Engine& engine = Engine::Get();
  std::string left = engine.Finish();
  emu::Undelivered::Unwatch();
  if (left.empty() || !engine.settings.left) return;
  if (engine.settings.strict) emu::Die("left at exit:%s", left.c_str());
  fprintf(stderr, "hf3fs emulator: left at exit:%s\n", left.c_str());
}

}  // namespace
