// Host memory that was freed and is used again.

export const file = 'csrc/device/recycled_memory.cc';

export default [
  {
    name: 'a-piece-that-is-too-short',
    find: 'if (piece->second >= bytes && ',
    replace: 'if (piece->second + kHugePage >= bytes && ',
    native: 'RecycledMemoryTest.*',
  },
  {
    name: 'what-is-left-of-a-piece',
    find: 'if (length > bytes) pieces_.emplace(address + bytes, length - bytes);',
    replace: '',
    native: 'RecycledMemoryTest.*',
  },
  {
    name: 'kept-beside-what-is-new',
    find: 'uint64_t more = bytes;',
    replace: 'uint64_t more = 0;',
    native: 'RecycledMemoryTest.*',
  },
  {
    name: 'more-than-its-share',
    find: 'bytes_ + bytes > most || ',
    replace: '',
    native: 'RecycledMemoryTest.*',
  },
  {
    name: 'kept-for-ever',
    find: '    Unmap(dropped);\n  }\n\n  std::mutex mutex_;',
    replace: '  }\n\n  std::mutex mutex_;',
    native: 'RecycledMemoryTest.*',
  },
];
