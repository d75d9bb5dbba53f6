// Loads to several devices at a time.
export default [
  {
    name: 'slots-are-kept-for-each-device',
    file: 'csrc/transfer/loop_reads.cc',
    find: 'return free > kept_for_others;',
    replace: 'return free > 0 || kept_for_others > 0;',
    native: 'SeveralDevicesTest.OneThatCopiesSlowlyLeavesSlotsToTheOthers',
  },
  {
    name: 'a-read-leaves-out-what-other-devices-have',
    file: 'csrc/transfer/chunker.cc',
    find: 'if (plan.apart) gap = 0;',
    replace: '',
    native: 'ChunkerApart.*',
  },
  {
    name: 'each-transfer-copies-by-the-stream-of-its-device',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'CopyStream& stream = *streams_[op.transfer->device()];',
    replace: 'CopyStream& stream = *streams_[0];',
    native: 'SeveralDevicesTest.*',
  },
  {
    name: 'only-the-device-that-is-waited-for-lacks-room',
    file: 'src/transfer/devices-load.ts',
    find: 'if (!this.#collectsReady) return next;',
    replace: 'return this.#parts.map(({ load }) => load.lacksRoom).find((limit) => limit);',
    jest: 'test/devices-budget.test.ts',
  },
];
