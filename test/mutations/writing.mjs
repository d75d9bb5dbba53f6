// Files that are written: what stands there before.

export const file = 'src/base/atomic-write.ts';

export default [
  {
    name: 'mode-is-not-kept',
    find: 'await file.chmod(mode);',
    replace: '{}',
    jest: 'test/atomic-write.test.ts',
    title: 'keeps the mode and the owner of the files that it replaces',
  },
  {
    name: 'link-is-replaced',
    find: 'if (next === undefined) return at;',
    replace: 'return at;',
    jest: 'test/atomic-write.test.ts',
    title: 'writes what links lead to, and leaves them',
  },
  {
    name: 'device-is-replaced',
    find: 'if (!replaced || replaced.isFile())',
    replace: 'if (!replaced || !replaced.isDirectory())',
    jest: 'test/atomic-write.test.ts',
    title: 'refuses what is no regular file, itself or behind a link, and leaves it',
  },
  {
    name: 'end-of-a-device-tensor-is-left-out',
    file: 'src/safetensors/save-tensors.ts',
    find: 'offset < byteLength; offset += DEVICE_PIECE_BYTES',
    replace: 'offset + DEVICE_PIECE_BYTES <= byteLength || offset === 0; offset += DEVICE_PIECE_BYTES',
    jest: 'test/save-loaded.test.ts',
    title: 'a tensor larger than what is copied from a device at a time',
  },
  {
    name: 'replaced-index-is-not-noticed',
    file: 'src/safetensors/shards.ts',
    find: 'await checkUnchanged?.();',
    replace: '',
    jest: 'test/save-sharded.test.ts',
    title: 'a reader that has read the old index gets FILE_CHANGED, and not files of both',
  },
  {
    name: 'names-of-the-old-set-are-taken',
    file: 'src/safetensors/save-set.ts',
    find: 'if (inTheWay.length === 0 && hasIndex) return;',
    replace: 'if (hasIndex) return;',
    jest: 'test/save-sharded.test.ts',
    title: 'each step is old, new or refused',
  },
  {
    name: 'streamed-tensors-are-kept',
    file: 'src/safetensors/save-sharded.ts',
    find: '      dispose(streamed);',
    replace: '',
    jest: 'test/save-sharded.test.ts',
    title: 'is written as it comes, each tensor then disposed',
  },
  {
    name: 'living-process-is-taken-for-dead',
    file: 'src/base/temporary.ts',
    find: 'return found === undefined || found === start;',
    replace: 'return false;',
    jest: 'test/save-sharded.test.ts',
    title: 'of a process that died is removed by the next save; of one that lives, it is refused',
  },
];
