// Which files a folder, an index or a model means.

const FOLDERS = 'test/folders.test.ts';

export default [
  {
    name: 'links-out-of-the-folder-are-followed-always',
    file: 'src/safetensors/named-file.ts',
    find: '  if (!followLinks) {',
    replace: '  if (false) {',
    jest: FOLDERS,
    title: 'a link in the middle of a path of the index, without followLinks',
  },
  {
    name: 'half-a-set-is-a-model',
    file: 'src/safetensors/files.ts',
    find: "    if (model?.kind === 'set') checkWhole(folder, model.files);\n",
    replace: '',
    jest: FOLDERS,
    title: 'interrupted download, without an index',
  },
  {
    name: 'dot-files-are-weights',
    file: 'src/safetensors/files.ts',
    find: "filter((name) => !name.startsWith('.'));",
    replace: 'filter(() => true);',
    jest: FOLDERS,
    title: 'what macOS leaves behind, without an index',
  },
  {
    name: 'consolidated-is-loaded-too',
    file: 'src/safetensors/files.ts',
    find: '!CONSOLIDATED.test(name)',
    replace: 'true',
    jest: FOLDERS,
    title: 'consolidated beside model.safetensors',
  },
  {
    name: 'a-name-is-not-decoded',
    file: 'src/safetensors/named-file.ts',
    find: 'return decoded === name ? undefined : unsafe(decoded);',
    replace: 'return undefined;',
    jest: 'test/shards.test.ts',
    title: 'the shard name',
  },
  {
    name: 'tensors-that-the-index-leaves-out-are-loaded',
    file: 'src/safetensors/index-join.ts',
    find: 'selection: partial.has(file) ? new Uint32Array(wanted) : null',
    replace: 'selection: null',
    jest: 'test/shards.test.ts',
    title: 'a tensor that it does not name is left out, and the report says so',
  },
];
