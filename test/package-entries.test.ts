import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, relative } from 'node:path';
import ts from 'typescript';
import { expectClean } from './support/child.js';

const TOP = join(__dirname, '..');

test('the ES module and CommonJS entries are one package: the same classes, the same registry', async () => {
  await expectClean('package-entries.child.mjs');
});

test.each([
  ['fastsafetensors-node', 'dist/src/index.js'],
  ['fastsafetensors-node/ort', 'dist/adapters/ort/index.js'],
  ['fastsafetensors-node/tfjs', 'dist/adapters/tfjs/index.js'],
])('%s is two files: neither the addon nor other packages are loaded before they are used', (name, entry) => {
  const script = `
    const before = new Set(process.moduleLoadList);
    require('${name}');
    const builtin = process.moduleLoadList.filter((name) => !before.has(name));
    console.log(JSON.stringify({ builtin, files: Object.keys(require.cache) }))`;
  const { builtin, files } = JSON.parse(execFileSync(process.execPath, ['-e', script], { cwd: TOP, encoding: 'utf8' }));
  expect(files.map((path: string) => relative(TOP, path)).sort()).toEqual([entry, 'dist/src/core.js'].sort());
  // They take 2 to 3 ms each.
  expect(builtin).not.toEqual(expect.arrayContaining([expect.stringMatching(/ (crypto|child_process)$/)]));
});

/** What a strict compiler that checks every declaration says of a user's module. */
function complaints(source: string): string[] {
  const file = join(TOP, 'user.mts'); // within the package, which may import itself by its name
  const options: ts.CompilerOptions = {
    strict: true,
    skipLibCheck: false,
    noEmit: true,
    target: ts.ScriptTarget.ES2023,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.Node20,
    moduleResolution: ts.ModuleResolutionKind.Node16,
    rootDir: TOP,
    types: ['node'],
  };
  const host = ts.createCompilerHost(options);
  const { fileExists, getSourceFile } = host;
  host.fileExists = (name) => name === file || fileExists(name);
  host.getSourceFile = (name, ...rest) =>
    name === file ? ts.createSourceFile(name, source, ts.ScriptTarget.ES2023) : getSourceFile(name, ...rest);
  const program = ts.createProgram([file], options, host);
  return ts.getPreEmitDiagnostics(program).map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));
}

test('declarations stand by themselves and show nothing internal', () => {
  const internal = ['tensor.borrowed', 'tensor.placement', 'metadata.identity', 'metadata.packed', 'metadata.indexOf'];
  const source = `
    import { DeviceTensor, loadConfig, ParallelLoader, SafeTensorsMetadata } from 'fastsafetensors-node';
    import { createSession, onnxruntime } from 'fastsafetensors-node/ort';
    import { emulators, mockCopier } from 'fastsafetensors-node/testing';
    import { loadGraphModel, tfjs } from 'fastsafetensors-node/tfjs';
    export const used = [createSession, onnxruntime, emulators, mockCopier, loadGraphModel, tfjs, ParallelLoader];
    export async function use(tensor: DeviceTensor, metadata: SafeTensorsMetadata) {
      for (const { name } of metadata) await tensor.toHost({ offset: name.length });
      const any: unknown = tensor;
      if (any instanceof DeviceTensor && any.dtype === 'F32') new Float32Array(8).set(any.data);
      ${[...internal, 'loadConfig({}, () => {})'].map((code) => `// @ts-expect-error\n${code};`).join('\n')}
    }`;
  expect(complaints(source)).toEqual([]);
});

test('what is published is the package, without benchmarks, demo and examples', () => {
  const [{ files }] = JSON.parse(
    execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: TOP, encoding: 'utf8' }),
  );
  const paths: string[] = files.map(({ path }: { path: string }) => path);
  expect(paths).toEqual(
    expect.arrayContaining([
      'package.json',
      'fastsafetensors.schema.json',
      'dist/src/index.js',
      'dist/adapters/ort/index.d.ts',
      'docs/files.md',
    ]),
  );
  expect(paths.filter((path) => /^dist\/(?!src\/|adapters\/)|^(bench|demo|examples|test)\//.test(path))).toEqual([]);
  // Nothing is left of a source that was moved or removed.
  const sourceOf = (path: string) => path.replace(/^dist\//, '').replace(/(\.d)?\.(m?)[jt]s$/, '.$2ts');
  expect(paths.filter((path) => path.startsWith('dist/') && !existsSync(join(TOP, sourceOf(path))))).toEqual([
    'dist/src/core.js',
  ]); // of many
});
