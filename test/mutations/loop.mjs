// The I/O thread: what it waits for, checks and holds.

export const file = 'csrc/transfer/loop.cc';

export default [
  {
    name: 'room-of-the-budget',
    file: 'csrc/transfer/active_transfer.cc',
    find: ' && HasRoom(allowed)',
    replace: '',
    native: 'MemoryBudgetTest.*',
  },
  {
    name: 'room-is-given-back-before-memory-is-free',
    file: 'csrc/transfer/memory_budget.h',
    find: 'AfterFrees([grant = std::move(grant)]() mutable { grant.reset(); });',
    replace: 'grant.reset();',
    native: 'MemoryBudgetTest.IsNeverExceededByTheDriversOwnCount',
  },
  {
    name: 'status-of-a-read',
    find: 'if (!status.ok()) op.transfer->Fail(status);',
    replace: '',
    native: 'EngineTest.AFailingReadEndsItsLoadOnly:GdsReaderTest.AReadThatClaimsMoreThanWasAskedForIsAnError',
  },
  {
    name: 'reads-of-a-failed-load-are-copied',
    find: `if (op.transfer->failed) return FreeOp(op);
  const bool in_device_slot`,
    replace: 'const bool in_device_slot',
    native: 'EngineCopiesTest.ALoadThatHasEndedStartsNoCopy',
  },
  {
    name: 'status-of-a-copy',
    find: 'if (!status.ok()) op.transfer->Fail(AddPlace(op, status));',
    replace: '',
    native: 'EngineTest.AFailingCopyEndsTheLoad',
  },
  {
    name: 'generation-of-a-completion',
    find: ' || ops_[index].generation != completion.tag >> 32',
    replace: '',
    native: 'EngineCopiesTest.ALateCompletionIsNotThatOfTheNextRead',
  },
  {
    name: 'stage-of-a-completion',
    find: 'if (op.stage == Op::kCopying && completion.kind == Completion::Kind::kCopy) return',
    replace: 'return',
    native: 'EngineCopiesTest.ACompletionThatComesTwiceIsHeardOnce',
  },
  {
    name: 'window',
    file: 'csrc/transfer/active_transfer.cc',
    find: ' && plan.BatchOf(allowed) < window',
    replace: '',
    native: 'EngineTest.LoadsBatchByBatchAsTheWindowAllows',
  },
  {
    name: 'room-on-the-device',
    find: 'devices_[t->device()]->CheckAvailable(bytes)',
    replace: 'Status()',
    native: 'EngineTest.MemoryThatCannotBeHadIsRefusedBeforeAnyIsTaken',
  },
  {
    name: 'close-with-operations-in-flight',
    find: 'if (closing_ && in_flight_ == 0 && transfers_.empty()) return;',
    replace: 'if (closing_) return;',
    native: 'EngineLife.CloseAtAnyMoment',
  },
  {
    name: 'end-with-operations-in-flight',
    find: 'const bool over = t.ops == 0 && (t.failed || t.complete());',
    replace: 'const bool over = t.failed || t.complete();',
    native: 'EngineTest.ADeadlineEndsALoadWhoseReadsHang',
  },
  {
    name: 'memory-under-a-copy',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'Status copying = stream.Submit(',
    replace: `op.buffers.clear();
  Status copying = stream.Submit(`,
    native: 'GdsReaderTest.AFileThatEndsEarlyIsAnError',
  },
  {
    name: 'slot-is-free-before-its-copy',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'if (copying.ok()) return;',
    replace: `if (copying.ok()) {
    slots_.Give(op.slot);
    op.slot = -1;
    return;
  }`,
    native: 'EngineCopiesTest.ACompletionThatComesTwiceIsHeardOnce:CudaFaultsTest.*',
  },
  {
    name: 'tensors-are-complete-before-their-copy',
    edits: [
      {
        file: 'csrc/transfer/loop_copy.cc',
        find: 'Status copying = stream.Submit(',
        replace: `FinishParts(op);
  Status copying = stream.Submit(`,
      },
      {
        file: 'csrc/transfer/loop.cc',
        find: `if (slots_.on_device() && HasDigests(op)) return StartDigest(op);
  FinishParts(op);`,
        replace: '',
      },
    ],
    native: 'Engine/EveryWay.BringsEveryByte/*',
  },
  {
    name: 'refused-copy-does-not-end-its-load',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'op.transfer->Fail(AddPlace(op, copying));',
    replace: '',
    native: 'EngineTest.ADeviceThatRefusesEndsTheLoad',
  },
  {
    name: 'copy-before-the-conversion-has-ended',
    file: 'csrc/transfer/loop_copy.cc',
    find: `    ConvertPieces(pieces);
    queue->Put({Completion::Kind::kConvert, tag, Status::Ok()});`,
    replace: `    queue->Put({Completion::Kind::kConvert, tag, Status::Ok()});
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ConvertPieces(pieces);`,
    native: 'EngineCopiesTest.WhatConvertsIsCopiedWhenItIsConverted',
  },
  {
    name: 'copies-across-allocations',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'if (op.buffers[i] == op.buffers[i - 1] && before.source',
    replace: 'if (before.source',
    native: 'EngineCopiesTest.NoCopyCrossesTheEndOfAnAllocation',
  },
  {
    name: 'copies-over-a-hole-in-the-file',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'before.source + before.length == source',
    replace: 'true',
    native: 'EngineCopiesTest.NeighboursInMemoryAreCopiedApartWhereTheFileHasAHole',
  },
  {
    name: 'copies-over-a-hole-in-memory',
    file: 'csrc/transfer/loop_copy.cc',
    find: 'before.destination + before.length == destination',
    replace: 'true',
    native: 'EngineCopiesTest.NeighboursInTheFileAreCopiedApartWhereMemoryHasAHole',
  },
  {
    name: 'file-without-a-descriptor-ends-the-load',
    find: '!t.failed && OutOfDescriptors(status.os_error())',
    replace: 'false',
    native: 'FewDescriptorsTest.FilesAreOpenedAsOthersAreClosed',
  },
  {
    name: 'files-that-were-put-off-wait-for-ever',
    find: '      t->Fail(why);',
    replace: '',
    native: 'FewDescriptorsTest.WithoutAnyTheErrorComesAtOnce',
  },
  {
    name: 'headers-do-not-take-turns',
    file: 'csrc/base/fd_turn.cc',
    find: 'turns.ended == seen',
    replace: 'true',
    native: 'FewDescriptorsTest.HeadersTakeTurns',
  },
  {
    name: 'pause-that-has-ended-is-no-deadline',
    file: 'csrc/transfer/loop_clocks.cc',
    find: 'if (throttled_) deadline',
    replace: 'if (throttled_ && Clock::now() < throttled_until_) deadline',
    native: 'EngineTest.RateLimitNeverSleepsThroughItsPause',
  },
  {
    name: 'single-items-are-news-of-a-load-that-is-wanted-whole',
    file: 'csrc/transfer/active_transfer.cc',
    find: 'news |= !transfer->options().whole;',
    replace: 'news = true;',
    native: 'EngineTest.OfALoadThatIsWantedWholeSingleItemsAreNoNews',
  },
  {
    name: 'idle-time-before-a-load-counts-for-its-rate',
    file: 'csrc/transfer/loop.cc',
    find: 'if (transfers_.empty()) throttled_until_ = std::max(throttled_until_, Clock::now());',
    replace: '',
    native: 'EngineTest.ALoadIsNeverReadAboveTheRate',
  },
  {
    name: 'stop-of-the-process-counts-whole',
    file: 'csrc/base/running_clock.h',
    find: 'std::min(now - looked_, tick_)',
    replace: '(now - looked_)',
    native: 'RunningClock.CountsAtMostATickFromOneLookToTheNext',
  },
  {
    name: 'complete-load-is-late',
    file: 'csrc/transfer/loop_clocks.cc',
    find: 't->failed || t->complete() || now <',
    replace: 't->failed || now <',
    native: 'EngineTest.ALoadThatIsCompleteIsNotLateForItsDeadline',
  },
  {
    name: 'stop-counts-for-copiers-of-users',
    file: 'src/base/timers.ts',
    find: 'ran += Math.min(now() - Math.max(began, latest), look);',
    replace: 'ran += now() - Math.max(began, latest);',
    jest: 'test/stopped-process.test.ts',
    title: 'requests of a copier of the user’s own that end after the process goes on',
  },
  {
    name: 'io-thread-closes-files-of-failed-loads',
    file: 'csrc/transfer/active_transfer.cc',
    find: 'closing.push_back(std::move(file.open));',
    replace: 'file.open.reset();',
    native: 'EngineTest.AFileThatDoesNotCloseHoldsUpNeitherItsErrorNorOtherLoads',
  },
  {
    name: 'turn-that-hangs-does-not-show',
    file: 'csrc/transfer/loop.h',
    find: 'std::atomic<uint64_t> turn{1};',
    replace: 'std::atomic<uint64_t> turn{0};',
    native: 'EngineTest.AnIoThreadThatHangsStaysInItsTurn',
  },
  {
    name: 'io-thread-that-hangs-ends-nothing',
    file: 'src/transfer/engine-load.ts',
    find: 'if (now !== turn || now % 2 === 0) since = milliseconds();',
    replace: 'since = milliseconds();',
    jest: 'test/hung-store.test.ts',
    title: 'an I/O thread that hangs in a call leaves',
  },
  {
    name: 'work-keeps-the-event-loop-alive',
    file: 'src/base/timers.ts',
    find: 'if (--waiting === 0) alive.unref();',
    replace: '',
    jest: 'test/hung-store.test.ts',
    title: 'a process ends by itself after STALLED and close(), though the read never comes back',
  },
  {
    name: 'looks-are-never-stalled',
    file: 'src/base/waiting.ts',
    find: 'this.#stalls.enter();',
    replace: '',
    jest: 'test/header-limits.test.ts',
    title: 'a header that never comes is',
  },
  {
    name: 'deadline-begins-after-headers',
    file: 'src/loaders/session.ts',
    find: 'timeoutMs: Math.max(watch.leftMs, 0.001)',
    replace: 'timeoutMs: this.options.timeoutMs',
    jest: 'test/header-limits.test.ts',
    title: 'has one deadline for headers and data',
  },
  {
    name: 'choice-of-a-copier-ends-with-one-load',
    file: 'src/loaders/engines.ts',
    find: 'chooseCopier(this.#device, files, this.#options, UNWATCHED)',
    replace: 'chooseCopier(this.#device, files, this.#options, calls)',
    jest: 'test/header-limits.test.ts',
    title: 'a load that gave up the look for its mount leaves the choice to the next one',
  },
  {
    name: 'hung-load-takes-all-threads-for-files',
    file: 'src/base/waiting.ts',
    find: 'const CALLS_AT_A_TIME = 8;',
    replace: 'const CALLS_AT_A_TIME = 64;',
    jest: 'test/header-limits.test.ts',
    title: 'a load asks for at most 8 files at a time',
  },
  {
    name: 'bytes-of-a-header-are-no-progress',
    file: 'src/base/waiting.ts',
    find: 'if (moved !== this.#moved) this.#stalls.progress();',
    replace: '',
    jest: 'test/header-limits.test.ts',
    title: 'nor is one whose bytes come slowly',
  },
];
