// The memory that this process and the 3FS daemon share: a piece of /dev/shm of our own, announced by a link in the
// mount.
#pragma once
#include <memory>
#include <string>

#include "base/status.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {

// A stretch of address space, so that one iov after another can lie at the same address.
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

class SharedIov {
 public:
  // Allocates (never a SIGBUS later), places on `numa` (-1: anywhere), maps over the whole range, announces, and
  // removes the name in /dev/shm, so that nothing is left of it if the process is killed. On the mount's thread.
  // OUT_OF_HOST_MEMORY names what a full /dev/shm lacks; THREEFS_DISCONNECTED, THREEFS_ERROR. The range must outlive
  // the iov.
  static Status Create(const UsrbioApi& api, const std::string& mount, int numa, const AddressRange& range,
                       std::unique_ptr<SharedIov>* out);
  // Removes the link, then the memory from the range. No ring may use it any more and no device have it registered.
  ~SharedIov();
  SharedIov(const SharedIov&) = delete;
  SharedIov& operator=(const SharedIov&) = delete;

  const Iov& iov() const { return iov_; }
  const Link& link() const { return link_; }

 private:
  explicit SharedIov(const AddressRange& range) : range_(range) {}
  const AddressRange& range_;
  bool mapped_ = false;
  Link link_;  // "" until it is there
  Iov iov_ = {};
};

// "0a1b2c3d-…" of 16 bytes, as 3FS names its links.
std::string UuidText(const char id[16]);

}  // namespace fst::usrbio
