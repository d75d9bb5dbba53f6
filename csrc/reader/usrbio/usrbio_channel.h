// What a reader reads through: a ring and the buffer that its reads fill, pinned for a device.
#pragma once
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "reader/usrbio/usrbio_iov.h"
#include "reader/usrbio/usrbio_reservation.h"
#include "reader/usrbio/usrbio_ring.h"

namespace fst::usrbio {

// Channels of one kind can stand in for each other.
struct ChannelKind {
  std::string mount;
  std::shared_ptr<Device> device;  // that the buffer is pinned for
  int numa = -1;                   // of the buffer and the ring; -1: anywhere
  size_t bytes = 0;                // of the buffer
  int entries = 0, io_depth = 0;   // of the ring

  bool operator==(const ChannelKind& other) const;
};

// Made and destroyed by anybody, used by one I/O thread at a time: it is handed on under a lock.
class Channel {
 public:
  // Makes buffer and ring on the mount's thread, over the whole of `range`, then pins the buffer. `pages` may be null;
  // it is used up. Blocks on the daemon. The codes of SharedIov::Create, Ring::Create and Device::PinHostMemory.
  static Status Create(const UsrbioApi& api, const ChannelKind& kind, std::shared_ptr<AddressRange> range,
                       ShmReservation* pages, std::unique_ptr<Channel>* out);
  // Ring, link, pin, memory: in this order nothing is used after it is gone. With reads in flight as well, see ~Ring.
  // Where the pin cannot be undone, the memory stays with a reference to its range (kept_memory.h). Blocks on the
  // daemon.
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  const ChannelKind& kind() const { return kind_; }
  const std::shared_ptr<AddressRange>& range() const { return range_; }
  const Iov& iov() const { return iov_->iov(); }
  Ring& ring() { return *ring_; }
  // Of buffer and ring; without the ring's where its daemon did not tell where it leads.
  std::vector<Link> links() const;

  // Its user has done with it: the ring reports nothing any more. False where that cannot be made sure, since reads are
  // in flight or its library failed: the channel can only be destroyed then. Until Attach it counts as idle (Metrics).
  bool Detach();
  // It has a user again, to whom the ring reports.
  void Attach(std::shared_ptr<RingEvents> events);

  // Of a channel without a user: its links lead where they led, on the same mount, and its buffer is pinned. Blocks on
  // the daemon.
  bool StillGood();
  // The mount that it was made on is the one that is there now.
  bool OnSameMount() const;
  // Of a channel without a user that is to be destroyed next: false where the daemon does not release what it shares
  // with this process, so that the channel is better kept. See SharedIov::Unlink.
  bool Unlink() { return iov_->Unlink(); }

 private:
  Channel(ChannelKind kind, std::shared_ptr<AddressRange> range) : kind_(std::move(kind)), range_(std::move(range)) {}
  void Count(int by) const;
  void CountAs(bool idle);

  const ChannelKind kind_;
  const std::shared_ptr<AddressRange> range_;
  dev_t mounted_ = 0;
  bool pinned_ = false, idle_ = false;
  std::shared_ptr<SharedIov> iov_;
  std::unique_ptr<Ring> ring_;
};

}  // namespace fst::usrbio
