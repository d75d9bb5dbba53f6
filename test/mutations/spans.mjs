// Bytes that a GPU copies from the page cache by itself: what makes sure that it may, and that they are the file's.

export const file = 'csrc/transfer/loop_spans.cc';

export default [
  {
    name: 'file-that-changed-under-its-copies',
    find: 'Status status = checks ? span->CheckUnchanged() : Status::Ok();',
    replace: 'Status status;',
    native: 'PinnedSpanTest.AFileThatChangesUnderItsCopiesIsNeverHandedOut',
  },
  {
    name: 'spans-of-failed-copies-are-ready',
    find: 'if (!status.ok()) op.transfer->Fail(status);\n  if (!op.transfer->failed) FinishParts(op);',
    replace: 'FinishParts(op);',
    native: 'PinnedSpanTest.AFileThatChangesUnderItsCopiesIsNeverHandedOut',
  },
  {
    name: 'span-is-unlocked-under-its-copies',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'if (copying.ok()) return;',
    replace: 'if (op.span != nullptr) return StartUnpinning(op);\n  if (copying.ok()) return;',
    native: 'PinnedSpanTest.*',
  },
  {
    name: 'verified-bytes-are-not-read',
    find: ' || plan.DigestOf(part.item) != nullptr;',
    replace: ';',
    native: 'PinnedSpanTest.WhatTheHostHasToTouchPassesThroughSlots',
  },
  {
    name: 'spans-go-on-after-a-failure',
    find: 'if (pins_) StopPinning(op.not_pinned);',
    replace: '',
    native: 'PinnedSpanTest.WhatCannotBeLockedIsReadAndSoIsAllAfterIt',
  },
  {
    name: 'slots-beside-locked-spans',
    find: 'return op.pins && !(op.transfer->failed && IsOverdue(op, ran));',
    replace: 'return false;',
    native: 'PinnedSpanTest.ALimitOfLockedMemoryIsKeptToAndSaid',
  },
  {
    name: 'slots-wait-for-hung-pins',
    find: 'return op.pins && !(op.transfer->failed && IsOverdue(op, ran));',
    replace: 'return op.pins;',
    native: 'HungPinsTest.ALoadThatIsReadInPlaceOfPinnedDoesNotWaitForThemForEver',
  },
  {
    name: 'waiting-for-a-slot-for-ever',
    file: 'csrc/transfer/loop_clocks.cc',
    find: 'if (!op->transfer->failed && IsOverdue(*op, ran)) FailStarved(',
    replace: 'if (false) FailStarved(',
    native: 'HungPinsTest.ALoadThatWaitsForASlotInPlaceOfPinsIsStalledWithTheLoadThatHasIt',
  },
  {
    name: 'read-only-flag',
    file: 'csrc/device/cuda_device.cc',
    find: 'cuda::kMemHostRegisterPortable | cuda::kMemHostRegisterReadOnly',
    replace: 'cuda::kMemHostRegisterPortable',
    native: 'PinnedSpanTest.EveryByteComesFromThePageCache',
  },
  {
    name: 'spans-beside-all-slots',
    file: 'csrc/transfer/engine.cc',
    find: 'fits - static_cast<uint64_t>(shared->slot_count)));',
    replace: 'fits));',
    native: 'PinnedSpanTest.SpansCountAsStagingAndStayWithinItsLimit',
  },
];
