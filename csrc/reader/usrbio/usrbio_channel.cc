#include "reader/usrbio/usrbio_channel.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/metrics.h"
#include "device/kept_memory.h"

namespace fst::usrbio {
namespace {

// The file system that `mount` leads to; 0 where it cannot be asked.
dev_t MountedAt(const std::string& mount) {
  struct stat st;
  return stat((mount + "/3fs-virt").c_str(), &st) == 0 ? st.st_dev : 0;
}

}  // namespace

bool ChannelKind::operator==(const ChannelKind& other) const {
  return mount == other.mount && device == other.device && numa == other.numa && bytes == other.bytes &&
         entries == other.entries && io_depth == other.io_depth;
}

Status Channel::Create(const UsrbioApi& api, const ChannelKind& kind, std::shared_ptr<AddressRange> range,
                       ShmReservation* pages, std::unique_ptr<Channel>* out) {
  std::unique_ptr<Channel> made(new Channel(kind, std::move(range)));
  FST_RETURN_IF_ERROR(OnMountThread(kind.mount, [&] {
    HoldLinkFolder(kind.mount);
    made->mounted_ = MountedAt(kind.mount);
    UniqueFd reserve;  // the ring's room, until it is made
    FST_RETURN_IF_ERROR(ReserveShm(Ring::BytesOf(kind.entries), &reserve));
    std::unique_ptr<SharedIov> iov;
    UniqueFd buffer;
    if (pages != nullptr) buffer = pages->Take(kind.bytes, kind.numa);
    FST_RETURN_IF_ERROR(SharedIov::Create(api, kind.mount, kind.numa, *made->range_, std::move(buffer), &iov));
    made->iov_ = std::move(iov);
    reserve = UniqueFd();
    return Ring::Create(api, kind.mount, kind.entries, kind.io_depth, kind.numa, &made->ring_);
  }));
  made->Count(+1);
  FST_RETURN_IF_ERROR(kind.device->PinHostMemory(made->range_->base(), made->range_->size()));
  made->pinned_ = true;
  *out = std::move(made);
  return Status::Ok();
}

Channel::~Channel() {
  const bool made = ring_ != nullptr;
  ring_.reset();
  if (pinned_) {
    (void)iov_->Unlink();
    auto unpin = [device = kind_.device, range = range_] { return device->UnpinHostMemory(range->base()); };
    ReleaseMemory(
        unpin, [iov = std::move(iov_)]() mutable { iov.reset(); }, range_->size(), &Metrics::Get().staging_bytes);
  }
  iov_.reset();
  if (made) Count(-1);
}

std::vector<Link> Channel::links() const {
  std::vector<Link> links = {iov_->link()};
  if (!ring_->link().target.empty()) links.push_back(ring_->link());
  return links;
}

bool Channel::Detach() {
  if (!ring_->Detach()) return false;
  CountAs(/*idle=*/true);
  return true;
}

void Channel::Attach(std::shared_ptr<RingEvents> events) {
  CountAs(/*idle=*/false);
  ring_->Attach(std::move(events));
}

// What is idle counts apart, as no load holds it.
void Channel::Count(int by) const {
  Metrics& metrics = Metrics::Get();
  (idle_ ? metrics.idle_rings : metrics.rings).fetch_add(by, std::memory_order_relaxed);
  if (idle_) metrics.idle_bytes.fetch_add(by * static_cast<int64_t>(range_->size()), std::memory_order_relaxed);
}

void Channel::CountAs(bool idle) {
  Count(-1);
  idle_ = idle;
  Count(+1);
}

bool Channel::OnSameMount() const { return mounted_ != 0 && MountedAt(kind_.mount) == mounted_; }

bool Channel::StillGood() {
  const std::vector<Link> both = links();
  if (both.size() < 2 || !OnSameMount()) return false;
  const bool linked = std::all_of(both.begin(), both.end(), [](const Link& link) {
    Link now;
    return ReadLink(link.path, &now) == 0 && now.target == link.target;
  });
  return linked && kind_.device->KeepPinned(range_->base(), range_->size()).ok();
}

}  // namespace fst::usrbio
