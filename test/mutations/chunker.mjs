// Where one read ends and the next begins.

export const file = 'csrc/transfer/chunker.cc';

export default [
  {
    name: 'holes-behind-long-runs-are-read',
    find: '!item.strided() || item.run < kLongRun',
    replace: 'true',
    native: '*Chunk*.*',
  },
  {
    name: 'holes-are-skipped-by-readers-that-cannot',
    find: '!needs.skips || ',
    replace: '',
    native: '*Chunk*.*:*EveryWay*',
  },
  {
    name: 'runs-of-a-part-end-behind-the-read',
    find: '(limit - from - item.run) / item.stride + 1',
    replace: '(limit - from - item.run) / item.stride + 2',
    native: '*Chunk*.*',
  },
  {
    name: 'holes-that-are-read-count-nothing',
    find: 'chunk.picked += (runs - 1) * item.hole();',
    replace: '',
    native: '*Chunk*.*',
  },
  {
    name: 'runs-that-convert-are-one-part',
    find: '!skips || item.converts() || chunk.converts',
    replace: '!skips',
    native: '*Chunk*.*',
  },
  {
    name: 'end-of-the-slot',
    find: 'length = RoomFor(item, rules, chunk, outputs, to, length);',
    replace: '',
    native: 'ConvertEngine.ChunksHoldWholeElementsAndFitTheirSlots',
  },
  {
    name: 'room-for-what-is-converted',
    find: 'if (rules.outputs_in_slot) used += kOutputAlignment + outputs;',
    replace: '',
    native: 'ConvertEngine.ChunksHoldWholeElementsAndFitTheirSlots',
  },
  {
    name: 'end-of-the-chunk',
    find: 'std::min(item.Together(cursor.done), limit - from)',
    replace: 'item.Together(cursor.done)',
    native: '*Chunk*.*:EngineCopiesTest.*',
  },
  {
    name: 'reads-end-where-memory-is-elsewhere',
    find: 'at < near && !item.strided()',
    replace: '!item.strided()',
    native: 'Chunk.ReadsGoOn*',
  },
  {
    name: 'reads-of-runs-end-in-memory',
    find: 'uint64_t room = 0, near = 0;',
    replace:
      'uint64_t room = 0, near = 0; ' +
      'if (chunk.direct) limit = start + Down(address, rules.chunk_bytes) + rules.chunk_bytes - address;',
    native: 'Chunk.WhatSkips*',
  },
  {
    name: 'reads-of-tensors-apart-end-in-memory',
    find: 'limit = start + rules.chunk_bytes;',
    replace: 'limit = start + Down(address, rules.chunk_bytes) + rules.chunk_bytes - address;',
    native: 'Chunk.WhatSkips*',
  },
  {
    name: 'direct-reads-end-in-the-file',
    find: 'if (chunk.direct && alignment == 1 && !first.strided()) {',
    replace: 'if (false) {',
    native: 'Chunk.*',
  },
  {
    name: 'length-of-the-chunk',
    find: 'uint64_t limit = Down(begin, rules.chunk_bytes) + rules.chunk_bytes;',
    replace: 'uint64_t limit = UINT64_MAX;',
    native: '*Chunk*.*:EngineCopiesTest.*',
  },
  {
    name: 'boundary-of-the-reader',
    find: 'if (needs.boundary > 0) limit = std::min(limit, Down(begin, needs.boundary) + needs.boundary);',
    replace: '',
    native: 'EngineTest.ScattersOverManyPieces:*Chunk*.*',
  },
  {
    name: 'another-file-in-one-read',
    find: 'if (item.file != first.file || from < stop',
    replace: 'if (from < stop',
    native: 'EngineTest.EmptyTensorsAnywhereAreReadyInOrder',
  },
  {
    name: 'another-allocation-in-a-direct-read',
    find: 'if (chunk.direct && item.allocation != first.allocation) break;',
    replace: '',
    native: '*Chunk*.*',
  },
  {
    name: 'another-place-in-a-direct-read',
    find: 'if (one_piece && item.destination + cursor.done - memory_start != from - start) break;',
    replace: '',
    native: '*Chunk*.*',
  },
  {
    name: 'congruence',
    find: 'bool congruent = start % alignment == address % alignment;',
    replace: 'bool congruent = true;',
    native: 'GdsReaderTest.ReadsEveryByteOntoEachDevice',
  },
  {
    name: 'whole-blocks-go-straight',
    find: 'limit = std::min(limit, start + Down(left, alignment));',
    replace: '',
    native: 'Engine/EveryWay.BringsEveryByte/GdsHostFiles*',
  },
];
