// A file whose tensors are views of a private mapping of it, in place of copies. A lease (base/read_lease.h) makes a
// writer wait until the pages that somebody has were copied, so that such a tensor neither changes nor goes away.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/private_mapping.h"
#include "base/read_lease.h"
#include "base/task_pool.h"
#include "reader/open_file.h"

namespace fst {

class MappedFile : public FdFile, public LeaseHolder, public std::enable_shared_from_this<MappedFile> {
 public:
  enum class Protection {
    kLease,      // writers wait for us
    kImmutable,  // fs-verity, or a file system that cannot be written to: nothing can change the file
    kNone,       // `insist`: a writer changes the tensors, and one who truncates the file crashes who reads them
  };
  struct Options {
    bool insist = false;                   // map also what is not in memory, or what no lease can protect
    uint64_t begin = 0, end = UINT64_MAX;  // the bytes that are wanted: their pages are mapped
    // As many bytes may be mapped by this process in all, where `insist` is false: see MostToMap.
    uint64_t most = UINT64_MAX;
    // Closes files that nothing protects, whose store may hang; null: who drops them does.
    std::shared_ptr<TaskPool> closer = nullptr;
    bool opens_anew = false;  // leaves the descriptors of HeaderFdCache to who reads by them
  };

  // As many bytes as writers could make this process copy: they fit into the memory that is available, and half a GB a
  // second is done before the kernel lets the writer go on. Any thread; reads /proc.
  static uint64_t MostToMap();

  // Opens `path` as OpenUnchanged does, and maps it. OK with a null `*out`: it is to be copied, `*why_not` says why.
  // IO_ERROR, FILE_CHANGED. Any thread; blocks.
  static Status Open(const std::string& path, const FileIdentity& expected, const Options& options,
                     std::shared_ptr<MappedFile>* out, std::string* why_not);
  ~MappedFile() override;

  Protection protection() const { return protection_; }

  // Whether these bytes are in mapped pages.
  bool Covers(uint64_t offset, uint64_t length) const;
  // An allocation over bytes that it covers; `offset` is a multiple of 4096. It holds the mapping, and its bytes are
  // those of the file whose identity was compared, also when that changes later. Null when they would not be any more:
  // a writer has been let in. Any thread.
  std::shared_ptr<DeviceBuffer> BufferOf(const std::shared_ptr<Device>& device, uint64_t offset, size_t length);
  // Whether an allocation is one of BufferOf.
  bool Holds(const DeviceBuffer& buffer) const;
  // Brings the pages of these bytes in. Of an allocation that the caller holds, or is still to make: where a writer is
  // let in meanwhile, BufferOf gives null. IO_ERROR, UNEXPECTED_EOF, FILE_CHANGED. Any thread; blocks.
  Status Populate(uint64_t offset, size_t length) const;
  // Whether each of these bytes, which are in mapped pages, is in memory. Any thread; does not block.
  bool IsResident(uint64_t offset, size_t length) const;
  // Whether a lease on it is held, where it has one, and nobody waits for its end; and, where it `looks`, whether the
  // path still means this file. Asks the file system. Any thread.
  bool IsCurrent(bool looks) const;
  // FILE_CHANGED when a writer may have changed bytes of its allocations: the lease was lost. Any thread; does not
  // block.
  Status CheckKept() const;

  bool OnBreak() override;
  void OnLost() override;

 private:
  struct Live {
    uint64_t begin, end;
    bool operator<(const Live& other) const { return begin < other.begin; }
  };

  MappedFile(const std::string& path, const FileIdentity& identity, UniqueFd fd)
      : FdFile(path, identity, std::move(fd)) {}
  Status Protect(bool insist, std::string* why_not);
  std::string LostText() const;
  // Gives back this process's own memory in pages of the range that no allocation has.
  void Discard(PrivateMapping::Range range);

  Protection protection_ = Protection::kNone;
  bool given_ = false;  // to the caller of Open
  bool counted_ = false;
  uint64_t owed_ = 0;  // bytes that a writer would make this process copy
  std::unique_ptr<PrivateMapping> mapping_;
  std::mutex mutex_;
  std::multiset<Live> live_;                 // what BufferOf has given and is not dropped
  uint64_t longest_ = 0;                     // of them ever
  bool detached_ = false;                    // a writer was noticed: BufferOf gives nothing any more
  std::vector<PrivateMapping::Range> left_;  // by OnBreak alone: what is still to be detached
  // What is live lies in this process's own memory, and counts there. Written under the mutex.
  std::atomic<bool> own_memory_{false};
  std::atomic<bool> lost_{false};  // a writer was let in before that
};

}  // namespace fst
