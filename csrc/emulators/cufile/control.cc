#include "emulators/cufile/control.h"

#include <iterator>

#include "emulators/cufile/emulator.h"

namespace {

// The state, with the lock held until the end of the full expression or the scope.
struct Locked {
  fst::emu_cufile::Emulator& emulator = fst::emu_cufile::Emulator::Get();
  fst::emu_cufile::Lock lock{emulator.mutex};
  fst::emu_cufile::Emulator* operator->() { return &emulator; }
};

}  // namespace

void fst_emu_cufile_reset(void) {
  Locked state;
  state->failures.Forget();
  state->held = false;
  state->ReadSettings();
  unsigned long long in_flight = state->counters.in_flight;
  state->counters = {};
  state->counters.in_flight = in_flight;
  state->changed.notify_all();
}

int fst_emu_cufile_set_fail(const char* function, unsigned long long nth, int code) {
  return Locked()->failures.Add(function, nth, code) ? 0 : -1;
}

unsigned long long fst_emu_cufile_call_count(const char* function) { return Locked()->failures.calls(function); }

const char* fst_emu_cufile_function_name(int index) {
  static const char* const kNames[] = {
#define X(member, symbol, result, parameters) #symbol,
      FST_CUFILE_API(X)
#undef X
  };
  return index >= 0 && index < static_cast<int>(std::size(kNames)) ? kNames[index] : nullptr;
}

void fst_emu_cufile_set_compat(int compat, int allowed) {
  Locked state;
  state->compat = compat != 0;
  state->allow_compat = allowed != 0;
}

void fst_emu_cufile_set_refuse(const char* pattern, int code) {
  Locked state;
  state->refuse = pattern;
  state->refuse_code = code;
}

void fst_emu_cufile_set_require_direct(int on) { Locked()->require_direct = on != 0; }
void fst_emu_cufile_set_short_reads(unsigned long long most_bytes) { Locked()->most_bytes = most_bytes; }
void fst_emu_cufile_set_end(unsigned long long offset) { Locked()->end = offset; }
void fst_emu_cufile_set_overstated(unsigned long long bytes) { Locked()->overstated = bytes; }
void fst_emu_cufile_set_delay_us(unsigned long long microseconds) { Locked()->delay_us = microseconds; }
void fst_emu_cufile_set_bandwidth(unsigned long long bytes_per_second) { Locked()->bandwidth = bytes_per_second; }
void fst_emu_cufile_set_strict(int on) { Locked()->strict = on != 0; }

void fst_emu_cufile_hold(int on) {
  Locked state;
  state->held = on != 0;
  state->changed.notify_all();
}

unsigned long long fst_emu_cufile_in_flight(void) { return Locked()->counters.in_flight; }
int fst_emu_cufile_driver_open(void) { return Locked()->open; }
unsigned long long fst_emu_cufile_live_handles(void) { return Locked()->handles.size(); }
unsigned long long fst_emu_cufile_live_buffers(void) { return Locked()->buffers.size(); }
unsigned long long fst_emu_cufile_bytes_read(void) { return Locked()->counters.bytes_read; }
unsigned long long fst_emu_cufile_unaligned_reads(void) { return Locked()->counters.unaligned_reads; }
unsigned long long fst_emu_cufile_unregistered_reads(void) { return Locked()->counters.unregistered_reads; }
unsigned long long fst_emu_cufile_buffered_files(void) { return Locked()->counters.buffered_files; }

const char* fst_emu_cufile_last_refusal(void) {
  static thread_local std::string text;
  text = fst::emu_cufile::LastRefusal();
  return text.c_str();
}
