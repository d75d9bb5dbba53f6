#include "reader/mapped_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "base/io_error.h"
#include "base/mapped_pages.h"
#include "base/text.h"
#include "base/warnings.h"
#include "device/host_memory.h"

#ifndef STATX_ATTR_VERITY
#define STATX_ATTR_VERITY 0x00100000
#endif

namespace fst {
namespace {

constexpr double kEnoughResident = 0.9;
constexpr uint64_t kMaxFiles = 4096;  // each keeps its descriptor, on which its lease is
constexpr uint64_t kFreeShare = 4;    // at most one in 4 of the descriptors that are free

std::atomic<uint64_t> mapped_files{0};
std::atomic<uint64_t> owed_bytes{0};  // that writers of all mapped files would have this process copy

bool HasVerity(int fd) {
  struct statx info;
  return statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) == 0 && (info.stx_attributes & STATX_ATTR_VERITY) != 0;
}

bool OneMoreFile(int fd) {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  // open(2) returns the lowest free number, so at least that many descriptors are in use.
  const auto used = static_cast<uint64_t>(fd);
  const uint64_t most = limit.rlim_cur > used ? std::min<uint64_t>(kMaxFiles, (limit.rlim_cur - used) / kFreeShare) : 0;
  if (++mapped_files <= most) return true;
  --mapped_files;
  return false;
}

void Count(std::atomic<int64_t>& counter, int64_t bytes) { counter.fetch_add(bytes, std::memory_order_relaxed); }

}  // namespace

uint64_t MappedFile::MostToMap() {
  constexpr uint64_t kCopiedASecond = uint64_t{512} << 20;
  // 0: writers wait as long as it takes.
  const uint64_t seconds = strtoull(ReadText("/proc/sys/fs/lease-break-time").c_str(), nullptr, 10);
  const uint64_t memory = AvailableHostBytes();
  return seconds == 0 ? memory : std::min(memory, seconds * kCopiedASecond);
}

Status MappedFile::Open(const std::string& path, const FileIdentity& expected, const Options& options,
                        std::shared_ptr<MappedFile>* out, std::string* why_not) {
  auto copied = [&](std::string why) {
    *why_not = std::move(why);
    return Status::Ok();
  };
  if (!PopulatesMappings()) return copied("this kernel cannot populate mappings (Linux 5.14 can)");
  if (options.begin >= std::min(options.end, expected.size)) return copied("nothing of it is wanted");
  UniqueFd fd;
  Status opened = (options.opens_anew ? OpenAnew : OpenUnchanged)(path, 0, expected, &fd);
  if (OutOfDescriptors(opened.os_error())) return copied("no descriptor is free for it (ulimit -n)");  // reads wait
  FST_RETURN_IF_ERROR(opened);
  const PrivateMapping::Range wanted = {options.begin, std::min(options.end, expected.size)};
  std::shared_ptr<MappedFile> file(
      new MappedFile(path, expected, std::move(fd)), [closer = options.closer](auto* dead) {
        const bool may_hang = closer != nullptr && dead->given_ && dead->protection_ == Protection::kNone;
        if (!may_hang || !closer->Post([dead] { delete dead; }).ok()) delete dead;
      });
  file->counted_ = OneMoreFile(file->fd());
  if (!file->counted_) return copied("as many files are mapped as descriptors can be spared for (ulimit -n)");
  file->owed_ = wanted.second - wanted.first;
  if ((owed_bytes += file->owed_) > options.most && !options.insist)
    return copied("more is mapped than there is memory for, or time in lease-break-time, when writers come");
  // Before the lease: once that is broken the mapping is detached.
  if (int error = PrivateMapping::Create(file->fd(), wanted, &file->mapping_))
    return copied("it cannot be mapped: " + ErrnoText(error));
  FST_RETURN_IF_ERROR(file->Protect(options.insist, why_not));
  if (!why_not->empty()) return Status::Ok();
  // Nothing has changed the file before that, and nothing does from now on unnoticed.
  FST_RETURN_IF_ERROR(file->CheckUnchanged());
  if (!options.insist && file->mapping_->Resident(wanted) < kEnoughResident) return copied("it is not in memory");
  file->given_ = true;
  *out = std::move(file);
  return Status::Ok();
}

Status MappedFile::Protect(bool insist, std::string* why_not) {
  FileSystemTraits traits;
  if (int failed = FileSystemOf(fd(), &traits))
    return IoError(path(), "cannot look at the file system of " + path(), failed);
  if (traits.read_only || HasVerity(fd())) {
    protection_ = Protection::kImmutable;
    return Status::Ok();
  }
  const int error = traits.leases_protect ? TakeReadLease(fd(), weak_from_this()) : ENOTSUP;
  if (error == 0) {
    protection_ = Protection::kLease;
    return Status::Ok();
  }
  // A file that is being written to is no file to map, even where `insist` is true.
  if (insist && error != EAGAIN) return Status::Ok();
  if (error == ENOTSUP) {
    *why_not = "no lease holds up all writers on its file system";
  } else if (error == EAGAIN) {
    *why_not = "it is open for writing";
  } else if (error == EACCES) {
    *why_not = "it belongs to another user, so that no lease protects it";
  } else {
    *why_not = "no lease protects it: " + ErrnoText(error);
  }
  return Status::Ok();
}

MappedFile::~MappedFile() {
  if (protection_ == Protection::kLease) EndReadLease(fd());
  owed_bytes -= owed_;
  if (counted_) --mapped_files;
}

std::shared_ptr<DeviceBuffer> MappedFile::BufferOf(const std::shared_ptr<Device>& device, uint64_t offset,
                                                   size_t length) {
  const auto bytes = static_cast<int64_t>(length);
  auto self = shared_from_this();
  std::multiset<Live>::iterator live;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (detached_) return nullptr;
    live = live_.insert({offset, offset + length});
    longest_ = std::max<uint64_t>(longest_, length);
    Count(Metrics::Get().mapped_bytes, bytes);
  }
  auto dropped = [self, live, bytes] {
    std::lock_guard<std::mutex> lock(self->mutex_);
    self->live_.erase(live);
    Count(self->own_memory_ ? Metrics::Get().host_bytes : Metrics::Get().mapped_bytes, -bytes);
  };
  // In a box, so that the reference goes on the freeing thread, which may unmap and close.
  auto box = std::make_shared<std::shared_ptr<MappedFile>>(std::move(self));
  return MakeBuffer(device, reinterpret_cast<uint64_t>(mapping_->At(offset)), length, std::move(dropped),
                    [box = std::move(box), offset, length] {
                      // The last one unmaps the file, here unless that may hang.
                      if (box->use_count() > 1 || (*box)->protection() == Protection::kNone)
                        (*box)->Discard({offset, offset + length});
                      box->reset();
                    });
}

void MappedFile::Discard(PrivateMapping::Range range) {
  std::lock_guard<std::mutex> lock(mutex_);  // no allocation is made of these pages meanwhile
  auto [begin, end] = PrivateMapping::PagesAround(range);
  for (auto live = live_.lower_bound({begin - std::min(begin, longest_), 0}); live != live_.end(); ++live) {
    const auto [first, last] = PrivateMapping::PagesAround({live->begin, live->end});
    if (first >= end) break;
    if (last <= begin) continue;
    if (begin < first) mapping_->Discard({begin, first});
    begin = std::max(begin, last);
  }
  if (begin < end) mapping_->Discard({begin, end});
}

bool MappedFile::Covers(uint64_t offset, uint64_t length) const {
  const auto [begin, end] = mapping_->pages();
  return offset >= begin && offset <= end && length <= end - offset;
}

bool MappedFile::Holds(const DeviceBuffer& buffer) const {
  const auto [begin, end] = mapping_->pages();
  return buffer.address() - reinterpret_cast<uint64_t>(mapping_->At(begin)) < end - begin;
}

Status MappedFile::Populate(uint64_t offset, size_t length) const {
  const int error = mapping_->Populate({offset, offset + length});
  if (protection_ == Protection::kNone || error != 0) FST_RETURN_IF_ERROR(CheckUnchanged());
  FST_RETURN_IF_ERROR(CheckKept());
  return error == 0 ? Status::Ok() : ReadFailed(*this, offset, length, error);
}

bool MappedFile::IsResident(uint64_t offset, size_t length) const {
  return mapping_->AllResident({offset, offset + length});
}

bool MappedFile::IsCurrent(bool looks) const {
  FileIdentity now;
  if (looks && !(FileIdentity::OfPath(path(), &now) && now == identity())) return false;
  return protection_ != Protection::kLease || HoldsReadLease(fd());
}

Status MappedFile::CheckKept() const {
  if (protection_ != Protection::kLease) return Status::Ok();
  // In this order: OnBreak has its say before the lease is given back.
  if (!HoldsReadLease(fd()) && !own_memory_) FST_RETURN_IF_ERROR(CheckUnchanged());
  return lost_ ? Status(Code::FILE_CHANGED, LostText() + "; load it again when its writer is done").At(path())
               : Status::Ok();
}

std::string MappedFile::LostText() const {
  return path() +
         " was opened for writing while its tensors were mapped, and the kernel did not wait until they were copied: "
         "this process was stopped or short of memory for longer than /proc/sys/fs/lease-break-time";
}

bool MappedFile::OnBreak() {
  std::vector<PrivateMapping::Range> begun;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!detached_) {
      for (const Live& live : live_) left_.emplace_back(live.begin, live.end);
    }
    detached_ = true;
    begun = left_;
  }
  const int error = mapping_->Detach(&left_);
  for (const PrivateMapping::Range& range : begun) Discard(range);  // what was dropped meanwhile
  if (error == EFAULT) OnLost();  // the file is shorter by now, whatever a lease was to prevent
  if (error != 0) return error == EFAULT;
  // What was copied when the kernel had let a writer in may be the writer's.
  if (!CheckUnchanged().ok()) lost_ = true;
  std::lock_guard<std::mutex> lock(mutex_);
  if (own_memory_.exchange(true)) return true;
  owed_bytes -= std::exchange(owed_, 0);
  int64_t bytes = 0;
  for (const Live& live : live_) bytes += static_cast<int64_t>(live.end - live.begin);
  Count(Metrics::Get().mapped_bytes, -bytes);
  Count(Metrics::Get().host_bytes, bytes);
  return true;
}

void MappedFile::OnLost() {
  lost_ = true;
  Warn(LostText() + "; load them again, or with mmap: false");
}

}  // namespace fst
