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
    file: 'src/safetensors/save-file.ts',
    find: 'offset < byteLength; offset += DEVICE_PIECE_BYTES',
    replace: 'offset + DEVICE_PIECE_BYTES <= byteLength || offset === 0; offset += DEVICE_PIECE_BYTES',
    jest: 'test/save-loaded.test.ts',
    title: 'a tensor larger than what is copied from a device at a time',
  },
];
