// Direct reads by io_uring.

export const file = 'csrc/reader/ring_reads.cc';

export default [
  {
    name: 'short-reads-are-data',
    find: 'result < 0 || static_cast<size_t>(result) < request.required',
    replace: 'result < 0',
    native: 'RingReadsTest.*',
  },
  {
    name: 'errors-of-reads-are-data',
    find: 'result < 0 || static_cast<size_t>(result) < request.required',
    replace: 'result >= 0 && static_cast<size_t>(result) < request.required',
    native: 'RingReadsTest.*',
  },
  {
    name: 'files-of-a-ring-are-not-looked-at',
    find: 'Status status = static_cast<const FdFile&>(*request.file).CheckUnchanged();',
    replace: 'Status status;',
    native: 'RingReadsTest.*',
  },
  {
    name: 'a-ring-that-hangs-is-waited-for',
    find: 'if (awake && state_->in_flight == 0) state_->ended.wait',
    replace: 'if (awake) state_->ended.wait',
    native: 'RingReadsTest.EndsAtOnce*:RingReadsTest.LeavesAReadThatHangs*',
  },
];
