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
    find: 'return mapped_ || held_back_ ? left : std::max<int64_t>(left, 0);',
    replace: 'return held_back_ ? left : std::max<int64_t>(left, 0);',
    jest: 'test/external-memory.test.ts',
    title: 'mapped tensors count as little',
  },
  {
    name: 'collected-arrays-are-told-one-by-one',
    find: 'given_back = std::clamp<int64_t>(change, 0, taken_off);',
    replace: 'given_back = 0 * taken_off;',
    jest: 'test/external-memory.test.ts',
    title: 'typed arrays over mapped tensors that were collected',
  },
  {
    name: 'load-is-told-at-its-begin',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'if (held_back) memory->HoldBack();',
    replace: '',
    jest: 'test/external-memory.test.ts',
    title: 'V8 hears of the memory of a load',
  },
  {
    name: 'load-in-batches-is-told-at-the-second',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'if (bytes > 0) memory->TellParts();',
    replace: 'if (bytes > 0) memory->Tell();',
    jest: 'test/external-memory.test.ts',
    title: 'of a load in batches',
  },
  {
    name: 'tensors-of-batches-are-told-at-the-end',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'if (bytes > 0) memory->TellParts();',
    replace: '',
    jest: 'test/external-memory.test.ts',
    title: 'of a load in batches',
  },
  {
    name: 'load-is-told-when-read',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'load->waiting.clear();',
    replace: 'load->waiting.clear(); TellWhenIdle(*load);',
    jest: 'test/external-memory.test.ts',
    title: 'of what was read',
  },
  {
    name: 'load-that-goes-on-is-not-told',
    file: 'src/transfer/engine-load.ts',
    find: 'this.#untell = after(TOLD_AFTER_MS, () => {',
    replace: 'this.#untell = after(1e9, () => {',
    ...counted,
  },
  {
    name: 'load-is-not-told-at-the-next',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'return load == nullptr || TellWhenIdle(*load);',
    replace: 'return load == nullptr;',
    jest: 'test/external-memory.test.ts',
    title: 'a model that is streamed again and again',
  },
  {
    name: 'load-that-reads-hides-others',
    file: 'csrc/napi/engine_bindings.cc',
    find: 'if (!tell()) tellers.push_back(std::move(tell));',
    replace: 'if (!tell()) { tellers.push_front(std::move(tell)); break; }',
    jest: 'test/external-memory.test.ts',
    title: 'beside a load that still reads',
  },
  {
    name: 'load-that-waits-is-not-told',
    file: 'csrc/transfer/loop.cc',
    find: 't.news |= t.transfer->PublishIdle(t.ops == 0);',
    replace: 't.news |= t.transfer->PublishIdle(over);',
    ...counted,
  },
];
