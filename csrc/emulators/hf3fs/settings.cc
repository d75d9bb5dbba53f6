#include "emulators/hf3fs/settings.h"

#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulators/hf3fs/mounts.h"

namespace emu {
namespace {

bool Number(const std::string& text, double* out) {
  char* end = nullptr;
  errno = 0;
  *out = strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && errno == 0 && *out >= 0;
}

bool Count(const std::string& text, uint64_t* out) {
  double value;
  if (!Number(text, &value) || value > 9e15) return false;
  *out = static_cast<uint64_t>(value);
  return static_cast<double>(*out) == value;
}

std::vector<std::string> SplitList(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool List(const std::string& text, uint64_t base, std::set<uint64_t>* out) {
  out->clear();
  for (const std::string& part : SplitList(text, ',')) {
    uint64_t n;
    if (!Count(part, &n) || n == 0) return false;
    out->insert(base + n);
  }
  return true;
}

bool Nth(const std::string& text, uint64_t base, uint64_t* out) {
  if (!Count(text, out)) return false;
  if (*out != 0) *out += base;
  return true;
}

bool Failures(const std::string& text, const Counters& counters, std::multimap<std::string, Settings::Failure>* out) {
  out->clear();
  for (const std::string& entry : SplitList(text, ',')) {
    std::vector<std::string> parts = SplitList(entry, ':');
    uint64_t n;
    if (parts.size() != 3 || !Count(parts[1], &n) || n == 0) return false;
    char* end = nullptr;
    long result = strtol(parts[2].c_str(), &end, 10);
    if (parts[2].empty() || *end != '\0') return false;
    auto calls = counters.calls.find(parts[0]);
    uint64_t base = parts[0] == "io" ? counters.ios : calls == counters.calls.end() ? 0 : calls->second;
    out->emplace(parts[0], Settings::Failure{base + n, static_cast<int>(result)});
  }
  return true;
}

bool Flag(const std::string& text, bool* out) {
  *out = text == "1";
  return text == "0" || text == "1";
}

}  // namespace

bool Set(Settings* s, const Counters& counters, const std::string& name, const std::string& value) {
  if (name == "strict") return Flag(value, &s->strict);
  if (name == "left") return Flag(value, &s->left);
  if (name == "poison") return Flag(value, &s->poison);
  if (name == "root") return s->root = value, true;
  if (name == "link") return s->link = value, true;
  if (name == "eio_path") return s->eio_path = value, true;
  if (name == "latency_ms") return Number(value, &s->latency_ms);
  if (name == "bandwidth") return Number(value, &s->bandwidth);
  if (name == "jobs") return Count(value, &s->jobs) && s->jobs > 0;
  if (name == "threads") return Count(value, &s->threads) && s->threads > 0 && s->threads <= 256;
  if (name == "shuffle") return Count(value, &s->shuffle);
  if (name == "eagain_every") return Count(value, &s->eagain_every);
  if (name == "early") return Count(value, &s->early);
  if (name == "short_every") return Count(value, &s->short_every);
  if (name == "eio_every") return Count(value, &s->eio_every);
  if (name == "short") return List(value, counters.ios, &s->short_ios);
  if (name == "eio") return List(value, counters.ios, &s->eio_ios);
  if (name == "stall") return List(value, counters.ios, &s->stall_ios);
  if (name == "ring_lost") return Nth(value, counters.ios, &s->ring_lost);
  if (name == "daemon_dead") return Nth(value, counters.ios, &s->daemon_dead);
  if (name == "daemon_stopped") return Nth(value, counters.ios, &s->daemon_stopped);
  if (name == "forget") return Nth(value, counters.ios, &s->forget);
  if (name == "memlock") return Count(value, &s->memlock);
  if (name == "fail") return Failures(value, counters, &s->failures);
  return false;
}

Settings FromEnvironment() {
  Settings settings;
  const char prefix[] = "FST_EMU_HF3FS_";
  for (char** entry = environ; *entry != nullptr; entry++) {
    if (strncmp(*entry, prefix, sizeof prefix - 1) != 0) continue;
    std::string text = *entry + sizeof prefix - 1;
    size_t equals = text.find('=');
    if (equals == std::string::npos || equals + 1 == text.size()) continue;  // empty is unset
    std::string name = text.substr(0, equals);
    for (char& c : name) c = static_cast<char>(tolower(static_cast<unsigned char>(c)));
    if (!Set(&settings, Counters(), name, text.substr(equals + 1))) Die("%s is no setting or has a bad value", *entry);
  }
  return settings;
}

void Die(const char* format, ...) {
  char reason[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(reason, sizeof reason, format, args);
  va_end(args);
  fprintf(stderr, "hf3fs emulator: %s\n", reason);
  RemoveTraces(nullptr);
  abort();
}

}  // namespace emu
