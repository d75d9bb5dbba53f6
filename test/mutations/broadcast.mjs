// Ranks that read what all have whole together.

const jest = 'test/broadcast.test.ts';

export default [
  {
    name: 'memory-freed-under-a-broadcast',
    file: 'csrc/device/communicator.cc',
    find: '    Drop();\n    pieces.clear();',
    replace: '    pieces.clear();\n    WaitForFrees();\n    Drop();',
    native: 'CommunicatorTest.AbortsWhatHangsAndDrainsItBeforeMemoryIsFreed',
  },
  {
    name: 'a-communicator-that-leaves-at-once',
    file: 'csrc/device/communicator.cc',
    find: 'Status ended = Check(api_->CommFinalize(comm_), "ncclCommFinalize");',
    replace: 'Status ended;\n    if (ended.ok()) api_->CommDestroy(comm_);',
    native: 'CommunicatorTest.GivesEveryRankTheBytesOfTheOthers',
  },
  {
    name: 'a-rank-that-waits-for-ever',
    file: 'csrc/device/communicator.cc',
    find: 'if (running.At(Clock::now()) < stall + kTick) continue;',
    replace: 'if (stall > kTick) continue;',
    native: 'CommunicatorTest.StallsWhereAnotherRankDoesNotCome',
  },
  {
    name: 'closing-that-waits-for-ranks',
    file: 'csrc/device/communicator.cc',
    find: 'return unless_over && !over_.ok();',
    replace: 'return unless_over && !over_.ok() && stall == kLongestEnd;',
    native: 'CommunicatorTest.ClosingEndsWhatIsInFlight',
  },
  {
    name: 'what-some-ranks-want',
    file: 'src/loaders/broadcast.ts',
    find: 'lists.every((list)',
    replace: 'lists.some((list)',
    jest,
    title: 'what not all ranks want whole, each reads by itself',
  },
  {
    name: 'a-failed-share-untold',
    file: 'src/loaders/rank-tensors.ts',
    find: '.then((shared) => shared.fail())',
    replace: '.then(() => {})',
    jest: 'test/broadcast-failures.test.ts',
    title: 'a rank that cannot read its share tells the others',
  },
  {
    name: 'calls-at-a-time',
    file: 'src/loaders/nccl.ts',
    find: 'return before.then(() => leave);',
    replace: 'return Promise.resolve(leave);',
    jest,
    title: 'calls follow each other, of several loaders as well; other calls are a rank of its own',
  },
  {
    name: 'shares-by-place',
    file: 'src/loaders/broadcast.ts',
    find: 'mine.get(nameOf(this.#plan, items[share.tensor]!))!.placement',
    replace: 'own.find((part) => mine.delete(part.name))!.placement',
    jest,
    title: 'ranks that list the files in another order have the same tensors',
  },
  {
    name: 'a-turn-passed-by',
    file: 'src/loaders/rank-tensors.ts',
    find: 'leaveTo(agree(), late)',
    replace: 'late()',
    jest,
    title: 'leaves the order of calls as it is',
  },
];
