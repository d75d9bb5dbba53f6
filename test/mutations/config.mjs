// What fastsafetensors.json means, and what stands in for a copier.

export const file = 'src/loaders/config.ts';

export default [
  {
    name: 'pipeline-off-and-a-queue',
    find: 'if (usePipeline === false) found.queueSize = -1;',
    replace: 'if (usePipeline === false) found.queueSize ??= -1;',
    jest: 'test/parity-configuration.test.ts',
    title: 'no pipeline, then a queue',
  },
  {
    name: 'several-producers',
    find: 'if (value !== 1) check.fail',
    replace: 'if (value === 0) check.fail',
    jest: 'test/config.test.ts',
    title: ': the message says where',
  },
  {
    name: 'copier-type-as-a-demand',
    find: "return { copier, fallback: 'nogds' };",
    replace: 'return { copier };',
    jest: 'test/parity-configuration.test.ts',
    title: 'guide: base with gds',
  },
  {
    name: 'undefined-hides-the-file',
    find: 'if (value === undefined || merged[option] !== undefined) continue;',
    replace: 'if (value === undefined || option in merged) continue;',
    jest: 'test/config.test.ts',
    title: 'what code says is not looked for in the file',
  },
  {
    name: 'section-over-code',
    find: 'merged.copierOptions = { ...section, ...copierOptions };',
    replace: 'merged.copierOptions = { ...copierOptions, ...section };',
    jest: 'test/config.test.ts',
    title: 'its factory is given its section of the file, and what code says over it',
  },
  {
    name: 'only-misfits-are-reported',
    file: 'src/copiers/three-fs.ts',
    find: 'const fallbacks: Fallback[] = files.map((path) => {',
    replace: 'const fallbacks: Fallback[] = [...misfits.keys()].map((path) => {',
    jest: 'test/three-fs.test.ts',
    title: 'a file beside one that is not on 3FS is reported, too',
  },
  {
    name: 'gds-over-nogds',
    file: 'src/copiers/registry.ts',
    find: "return type === 'gds' && nogds === true && !isOwn('gds') ? 'nogds' : type;",
    replace: "return type === 'gds' && nogds === 'never' && !isOwn('gds') ? 'nogds' : type;",
    jest: 'test/fallbacks.test.ts',
    title: "nogds wins over copier: 'gds', with and without a fallback",
  },
  {
    name: 'numa-for-3fs-alone',
    file: 'src/copiers/nogds.ts',
    find: 'near: options.setNuma !== false,',
    replace: 'near: true,',
    jest: 'test/set-numa.test.ts',
    title: "copier '",
  },
];
