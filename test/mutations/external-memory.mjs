// What V8 is told of memory that JavaScript values keep.

export const file = 'csrc/napi/external_memory.cc';

const counted = { jest: 'test/external-memory.test.ts', title: 'counts once, until it is disposed or collected' };

export default [
  {
    name: 'array-counts-twice',
    file: 'csrc/napi/js_values.cc',
    find: 'if (memory != nullptr) memory->Cover(length);',
    replace: 'if (memory != nullptr) memory->Cover(0);',
    ...counted,
  },
  {
    name: 'collected-array-stays-covered',
    find: '  covered_ -= bytes;',
    replace: '',
    ...counted,
  },
  {
    name: 'load-counts-what-it-gave-away',
    find: 'bytes_ -= std::min(bytes, bytes_);',
    replace: '',
    ...counted,
  },
  {
    name: 'window-is-not-counted',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'return load->allocates ? taken : 0;',
    replace: 'return 0;',
    ...counted,
  },
  {
    name: 'mapped-counts-like-memory',
    find: 'if (mapped) bytes = CountOfMapped(bytes);',
    replace: '',
    jest: 'test/external-memory.test.ts',
    title: 'mapped tensors count as little',
  },
  {
    name: 'array-over-mapped-counts',
    find: 'Report(mapped_ ? left : std::max<int64_t>(left, 0));',
    replace: 'Report(std::max<int64_t>(left, 0));',
    jest: 'test/external-memory.test.ts',
    title: 'mapped tensors count as little',
  },
];
