// The memory that this process and the 3FS daemon share: an iov of our own in /dev/shm, which a link in the mount
// names.
#pragma once
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {

inline constexpr char kShm[] = "/dev/shm";

// Reserved address space, so that each iov that replaces another lies at the same address.
class AddressRange {
 public:
  static Status Reserve(size_t size, std::unique_ptr<AddressRange>* out);
  ~AddressRange();
  uint8_t* base() const { return base_; }
  size_t size() const { return size_; }

 private:
  AddressRange(uint8_t* base, size_t size) : base_(base), size_(size) {}
  uint8_t* const base_;
  const size_t size_;
};

// Takes `bytes` of /dev/shm until *out closes: room for what others make there without reserving it. OUT_OF_HOST_MEMORY
// names what a full /dev/shm lacks; THREEFS_ERROR.
Status ReserveShm(size_t bytes, UniqueFd* out);

// OUT_OF_HOST_MEMORY for `what` of `bytes` that /dev/shm has no room for.
Status NoRoomInShm(const char* what, size_t bytes, int error);

class SharedIov {
 public:
  // Allocates every page now (no SIGBUS later), on `numa` (-1: anywhere), maps them over the whole range, announces
  // them, and removes the name in /dev/shm, so that nothing is left if the process is killed. On the mount's thread.
  // The range must outlive the iov. `pages`, where it is valid, is a file of the range's size in /dev/shm whose pages
  // are allocated already. OUT_OF_HOST_MEMORY says how much /dev/shm lacks; THREEFS_DISCONNECTED, THREEFS_ERROR.
  static Status Create(const UsrbioApi& api, const std::string& mount, int numa, const AddressRange& range,
                       UniqueFd pages, std::unique_ptr<SharedIov>* out);
  // Removes the link, then the memory from the range. No ring may use it and no device have it registered any more.
  ~SharedIov();
  // Removes the link now, so that the daemon gives the memory up; the destructor does the rest. False, with a warning,
  // where the daemon refuses, since it was mounted read-only: nothing has changed. No read may be in flight. Blocks on
  // the daemon.
  bool Unlink();
  SharedIov(const SharedIov&) = delete;
  SharedIov& operator=(const SharedIov&) = delete;

  const Iov& iov() const { return iov_; }
  const Link& link() const { return link_; }

 private:
  explicit SharedIov(const AddressRange& range) : range_(range) {}
  const AddressRange& range_;
  bool mapped_ = false;
  Link link_;  // "" until it exists
  Iov iov_ = {};
};

// "0a1b2c3d-…" for 16 bytes, as 3FS names its links.
std::string UuidText(const char id[16]);

}  // namespace fst::usrbio
