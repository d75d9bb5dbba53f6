// What the I/O thread reads next, and what holds it back.

export const file = 'csrc/transfer/loop_reads.cc';

export default [
  {
    name: 'first-read-is-as-long-as-all',
    find: 'brief ? RulesOfRead(shared_->rules, t.slot_reads) : shared_->rules',
    replace: 'shared_->rules',
    native: 'EngineCopiesTest.*',
  },
  {
    name: 'small-load-allocates-all-slots',
    find: 'slots_.has_all() || t.bytes > slots_.first_bytes()',
    replace: 'true',
    native: 'EngineCopiesTest.*',
  },
  {
    name: 'depth-of-the-reader',
    find: ' || reading_ >= reader_.needs().in_flight',
    replace: '',
    native: 'EngineTest.AStalledReadEndsItsLoadAndThoseThatWaitForIt',
  },
  {
    name: 'reads-of-files-that-are-not-open',
    find: 'if (t.files[first.file].open == nullptr) return false;',
    replace: '',
    native: 'EngineCopiesTest.NeighboursGoInOneCopy',
  },
  {
    name: 'reads-without-a-free-slot',
    find: 'if (status.ok() && slot < 0) return false;',
    replace: '',
    native: 'EngineCopiesTest.ACompletionThatComesTwiceIsHeardOnce:CudaFaultsTest.*',
  },
  {
    name: 'memory-under-a-read',
    find: 'if (!submitted.ok()) return undo(submitted);',
    replace: `if (!submitted.ok()) return undo(submitted);
  if (slot < 0) op.buffers.clear();`,
    native: 'EngineTest.AFailingReadEndsItsLoadOnly',
  },
  {
    name: 'registration-under-a-read',
    find: 'op.registration = request.target = registration;',
    replace: 'request.target = std::move(registration);',
    native: 'GdsReaderTest.ReadsStraightIntoPlaceWhereFileAndMemoryAreCongruent',
  },
  {
    name: 'refused-submission-keeps-its-slot',
    find: `--reading_;
    FreeOp(op);
    return status;`,
    replace: `--reading_;
    return status;`,
    native: 'EngineTest.ARefusedSubmissionEndsTheLoad',
  },
];
