import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import * as main from 'fastsafetensors-node';
import { emulators } from 'fastsafetensors-node/testing';
import ts from 'typescript';
import { splitOnnx } from '../src/models/onnx/split.js';
import { splitTfjs } from '../src/models/tfjs/split.js';
import { runChild } from './support/child.js';
import { encodeFile, entry } from './support/model-files.js';
import { addModel, floats, rawTensor } from './support/onnx-model.js';
import { testFolder } from './support/tensor-files.js';
import { writeGraphModel } from './support/tf-models.js';

// The TypeScript of README.md and of the pages in docs/, as it stands there: the compiler takes it, strict, and it runs
// against the built package, in a folder that has the files that it names. What README says of names without an import
// is what is put before a snippet; nothing in it is changed but that absolute paths (PATHS) begin in that folder.

const TOP = join(__dirname, '..');
const PATHS = /'(?=\/(?:models|mnt)\/)/g;

interface Snippet {
  readonly page: string;
  readonly line: number;
  readonly text: string;
}

interface Case {
  /** Stands in this snippet of the page, and in no other. */
  readonly has: string;
  /** Makes what the snippet names, in the folder that it runs in. */
  prepare?(folder: string): Promise<unknown> | unknown;
  readonly env?: () => Record<string, string>;
  /** What is run after it, and what that prints. */
  readonly check: string;
  readonly prints: string;
}

const write = (path: string, ...names: string[]) => {
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, encodeFile(names.map((name) => entry(name, 'F32', [64, 16]))));
};

/** Those of README.md, which are run. */
const README: readonly Case[] = [
  {
    has: 'const feeds',
    prepare: (folder) => {
      write(join(folder, 'models/llama/model-00001-of-00002.safetensors'), 'a');
      write(join(folder, 'models/llama/model-00002-of-00002.safetensors'), 'b', 'c');
    },
    check: 'console.log(Object.entries(feeds).map(([name, { dims }]) => [name, dims]).join(" "));',
    prints: 'a,64,16 b,64,16 c,64,16',
  },
  {
    has: 'loadFile(',
    prepare: (folder) => write(join(folder, 'model.safetensors'), 'embedding', 'bias'),
    check: 'console.log(Object.keys(tensors).join(), embedding.data instanceof Float32Array);',
    prints: 'embedding,bias true',
  },
  {
    has: "'/mnt/3fs/model'",
    prepare: (folder) => {
      mkdirSync(join(folder, 'mnt/3fs/3fs-virt/iovs'), { recursive: true });
      write(join(folder, 'mnt/3fs/model/model.safetensors'), 'a', 'b');
    },
    // The primary context is the process's: nobody frees it before the exit.
    env: () => ({ ...emulators.hf3fs.env(), ...emulators.cuda.env({ LEAKS: 'off' }) }),
    check: 'console.log(loader.report.copier, loader.report.device, loader.report.tensors);',
    prints: '3fs cuda:0 2',
  },
  {
    has: 'new SafeTensorsFileLoader',
    prepare: (folder) => {
      write(join(folder, 'a.safetensors'), 'weight');
      write(join(folder, 'b.safetensors'), 'other');
    },
    check: 'console.log(buffer.keys().join(), weight.shape.join());',
    prints: 'weight,other 64,16',
  },
  {
    has: 'fastsafeOpen(',
    prepare: (folder) => write(join(folder, 'model.safetensors'), 'embedding'),
    check: 'console.log(row.shape.join());',
    prints: '16',
  },
  {
    has: 'createSession(',
    prepare: (folder) => {
      writeFileSync(join(folder, 'model.onnx'), addModel(rawTensor('w', [512], floats(512, 0.5))));
      return splitOnnx(join(folder, 'model.onnx'));
    },
    check: `const { y } = await session.run({ x: new ort.Tensor('float32', new Float32Array(512), [512]) });
      console.log(session.inputNames.join(), y.data[0]);
      await session.release();`,
    prints: 'x -128',
  },
  {
    has: 'loadGraphModel(',
    prepare: (folder) => splitTfjs(writeGraphModel(join(folder, 'original')), { out: folder }),
    check: 'console.log(model.inputs.length, model.outputs.length > 0);',
    prints: '1 true',
  },
  {
    has: 'SafeTensorsMetadata.fromFile',
    prepare: (folder) => write(join(folder, 'model.safetensors'), 'weight'),
    check: `const out = await SafeTensorsMetadata.fromFile('out.safetensors');
      console.log(header.get('weight')?.shape.join(), [...out.keys()]);`,
    prints: "64,16 [ 'w' ]",
  },
  {
    has: 'mockCopier(',
    check: 'for await (const [name, tensor] of tensors) console.log(name, ...tensor.data);',
    prints: 'w 1 2',
  },
];

/** Those of other pages: compiled here with the names that the page says are given, run by the test that is named. */
const COMPILED: Record<string, { readonly given: string; readonly runBy: string }> = {
  'docs/from-fastsafetensors.md': {
    given: `declare const files: string[], device: string, metadata: Record<string, Record<string, string>>;
      declare const weights: Record<string, import('fastsafetensors-node').DeviceTensor | null>;`,
    runBy: 'daily-uses.test.ts',
  },
  'docs/sharing.md': { given: '', runBy: 'share.test.ts' },
  'docs/devices.md': { given: '', runBy: 'devices.test.ts' },
  'docs/saving.md': { given: '', runBy: 'save-sharded.test.ts' },
  'docs/doctor.md': { given: '', runBy: 'doctor.test.ts' },
  'docs/ranks.md': { given: '', runBy: 'rank-parts.test.ts' },
  'docs/adding-a-copier.md': { given: '', runBy: 'adding-a-copier.test.ts' },
};

/** What is no code of a user: the file of this package that a page has its readers add. */
const ofThePackage = ({ text }: Snippet) => /from '\.\//.test(text);

function snippetsOf(page: string): Snippet[] {
  const whole = readFileSync(join(TOP, page), 'utf8');
  return [...whole.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(({ index, 1: text }) => ({
    page,
    line: whole.slice(0, index).split('\n').length + 1,
    text: text!,
  }));
}

/** "Names without an import come from 'fastsafetensors-node', and `ort` and `tf` are yours", as code on one line. */
function before({ text }: Snippet): string {
  const imported = [...text.matchAll(/^import (.*) from/gm)].map(([, names]) => names).join(' ');
  const uses = (name: string) =>
    new RegExp(`(?<![\\w.'])${name}\\b`).test(text) && !new RegExp(`\\b${name}\\b`).test(imported);
  const names = Object.keys(main).filter(uses);
  return [
    names.length > 0 && `import { ${names.join(', ')} } from 'fastsafetensors-node';`,
    uses('ort') && `import * as ort from 'onnxruntime-node';`,
    uses('tf') && `import * as tf from '@tensorflow/tfjs';`,
  ]
    .filter(Boolean)
    .join(' ');
}

const OPTIONS: ts.CompilerOptions = {
  strict: true,
  noUncheckedIndexedAccess: true,
  skipLibCheck: true,
  noEmit: true,
  target: ts.ScriptTarget.ES2023,
  lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
  module: ts.ModuleKind.Node20,
  moduleResolution: ts.ModuleResolutionKind.Node16,
  rootDir: TOP,
  types: ['node'],
};

/** What the compiler says of sources, each a module of a user's: `name:line: message`. */
function complaints(sources: ReadonlyMap<string, string>): string[] {
  const host = ts.createCompilerHost(OPTIONS);
  const { fileExists, getSourceFile } = host;
  // Within the package, which may import itself by its name.
  const sourceOf = (path: string) => sources.get(relative(TOP, path));
  host.fileExists = (path) => sourceOf(path) !== undefined || fileExists(path);
  host.getSourceFile = (path, ...rest) => {
    const source = sourceOf(path);
    return source === undefined ? getSourceFile(path, ...rest) : ts.createSourceFile(path, source, OPTIONS.target!);
  };
  const program = ts.createProgram(
    [...sources.keys()].map((name) => join(TOP, name)),
    OPTIONS,
    host,
  );
  return ts.getPreEmitDiagnostics(program).map(({ messageText, file, start }) => {
    const line = file && start !== undefined ? file.getLineAndCharacterOfPosition(start).line + 1 : 0;
    return `${file ? relative(TOP, file.fileName) : ''}:${line}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
  });
}

/** What TensorFlow.js says of itself. */
const GREETING = /\n=+\nHi, looks like you are running TensorFlow.js[\s\S]*?\n=+\n/;

const readme = snippetsOf('README.md');
const others = readdirSync(join(TOP, 'docs'))
  .filter((name) => name.endsWith('.md'))
  .flatMap((name) => snippetsOf(`docs/${name}`))
  .filter((snippet) => !ofThePackage(snippet));

test('every snippet is run: of README.md here, of other pages where this test says', () => {
  for (const { has } of README) expect([has, readme.filter(({ text }) => text.includes(has)).length]).toEqual([has, 1]);
  expect(readme.filter(({ text }) => !README.some(({ has }) => text.includes(has)))).toEqual([]);
  expect(new Set(others.map(({ page }) => page))).toEqual(new Set(Object.keys(COMPILED)));
  const tests = readdirSync(__dirname);
  for (const { runBy } of Object.values(COMPILED)) expect(tests).toContain(runBy);
});

test('every snippet compiles, strict', () => {
  const sources = [...readme, ...others].map((snippet) => {
    const given = COMPILED[snippet.page]?.given ?? '';
    const source = `export {}; ${before(snippet)} ${given.replace(/\n/g, ' ')}\n${snippet.text}`;
    return [`${snippet.page.replace(/\W/g, '-')}-${snippet.line}.mts`, source] as const;
  });
  expect(complaints(new Map(sources))).toEqual([]);
  // What does not compile is seen.
  expect(complaints(new Map([['wrong.mts', "import { noSuchName } from 'fastsafetensors-node';"]]))).toEqual([
    expect.stringContaining('noSuchName'),
  ]);
});

const root = testFolder();
beforeAll(() => {
  for (const name of ['onnxruntime-node', '@tensorflow/tfjs', 'fastsafetensors-node']) {
    const link = join(root, 'node_modules', name);
    mkdirSync(join(link, '..'), { recursive: true });
    symlinkSync(name === 'fastsafetensors-node' ? TOP : join(TOP, 'node_modules', name), link);
  }
});

test.each(README.map((one) => [one.has, one] as const))(
  '%s … runs',
  async (_, { has, prepare, env, check, prints }) => {
    const snippet = readme.find(({ text }) => text.includes(has))!;
    const folder = join(root, `line-${snippet.line}`);
    mkdirSync(folder);
    await prepare?.(folder);
    const { outputText } = ts.transpileModule(
      `${before(snippet)}\n${snippet.text.replace(PATHS, `'${folder}`)}\nconsole.log('check');\n${check}`,
      { compilerOptions: { ...OPTIONS, module: ts.ModuleKind.ESNext } },
    );
    writeFileSync(join(folder, 'snippet.mjs'), outputText);
    const script = relative(__dirname, join(folder, 'snippet.mjs'));
    const { code, signal, stdout, stderr } = await runChild(script, [], { shell: `cd '${folder}'`, env: env?.() });
    expect({ code, signal, last: stdout.split('check\n')[1], stderr: stderr.replace(GREETING, '') }).toEqual({
      code: 0,
      signal: null,
      last: `${prints}\n`,
      stderr: '',
    });
  },
);
