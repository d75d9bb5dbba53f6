// Each project of examples/, in an empty folder beside the installed package.
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { run } from '../run.mjs';

const Y = 'y: 0.588 0.753 0.919 1.084 1.249 1.414 1.579 1.744';

/** By name: what has to be there beside the package, and what the last lines printed have to contain. */
const EXAMPLES = {
  esm: { prints: ['2 tensors, 60 bytes by nogds'] },
  cjs: { prints: ['embedding[42] + bias: 336.5 337.5'] },
  typescript: {
    packages: ['typescript', '@types/node', 'undici-types'],
    prints: ['a F32 2,2 Float32Array(4) [ 1, 2, 3, 4 ]', 'IO_ERROR: missing.safetensors'],
  },
  jest: { packages: ['jest'], prints: ['2 passed'] },
  vitest: { tools: [['vitest', 'vitest']], prints: ['2 passed'] },
  'ort-session': { packages: ['onnxruntime-node'], prints: [`${Y}\n${Y}\n`, 'memory for weights: 3072 bytes'] },
  'ort-3fs': { packages: ['onnxruntime-node'], prints: ['2 tensors by 3fs', Y], emulators: true },
  tfjs: { packages: ['@tensorflow/tfjs'], prints: ['y: 15 27 39'] },
  'worker-pool': { prints: ['layer.7: largest value 441'] },
  'custom-copier': { prints: ['w: 1 2 3 4', 'by hashing, sha256 ad73b9ac'] },
  'transformers-js': {
    tools: [['@huggingface/transformers', 'transformers']],
    model: 'model',
    long: true,
    prints: ['features: [2,64], memory for weights:'],
  },
};

const example = (name) => ({
  name: `example ${name}`,
  long: EXAMPLES[name].long,
  async run(stage) {
    const { packages, tools, prints, emulators, model } = EXAMPLES[name];
    const cwd = await stage.projectWith(this.name, { packages, tools });
    cpSync(join(stage.clone, 'examples', name), cwd, { recursive: true });
    if (emulators) await addEmulators(stage, cwd);
    if (model) await writeModel(stage, join(cwd, model));
    // Programs of linked packages: npm makes them for packages that it installed.
    for (const [program, file] of Object.entries({
      tsc: 'typescript/bin/tsc',
      jest: 'jest/bin/jest.js',
      vitest: 'vitest/vitest.mjs',
    })) {
      const link = join(cwd, 'node_modules', '.bin', program);
      mkdirSync(join(link, '..'), { recursive: true });
      if (existsSync(join(cwd, 'node_modules', file)) && !existsSync(link)) symlinkSync(join('..', file), link);
    }
    const { scripts } = JSON.parse(readFileSync(join(cwd, 'package.json'), 'utf8'));
    const script = scripts.start ? 'start' : 'test';
    const { stdout, stderr } = await stage.manager('npm 11', 'node 22', ['run', script], { cwd, env: { CI: '1' } });
    for (const line of prints) {
      if (!(stdout + stderr).includes(line)) throw new Error(`expected ${line}\nfound ${stdout}${stderr}`);
    }
    return `npm ${script}: ${prints.at(-1).trim()}`;
  },
});

async function addEmulators(stage, cwd) {
  const folder = join(cwd, 'node_modules', 'fastsafetensors-node-emulators');
  mkdirSync(folder);
  await run('tar', ['-xzf', await stage.emulators(), '--strip-components=1', '-C', folder], { cwd });
}

const GENERATOR = 'test/support/transformers-model.ts';
let compiled;

/** A folder with the generators of the tests, compiled; packages and the addon are those of the clone. */
async function compileGenerator({ top, folder, clone }) {
  const out = join(folder, 'compiled');
  const compilerOptions = { rootDir: clone, outDir: out, typeRoots: [join(clone, 'node_modules/@types')] };
  const config = { extends: join(top, 'tsconfig.json'), files: [join(clone, GENERATOR)], include: [], compilerOptions };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
  const program = join(top, 'node_modules', 'typescript', 'bin', 'tsc');
  await run(process.execPath, [program, '-p', join(folder, 'tsconfig.json')], { cwd: clone });
  for (const name of ['node_modules', 'prebuilds', 'package.json']) symlinkSync(join(clone, name), join(out, name));
  return out;
}

/** A model as the hub has them. */
async function writeModel(stage, folder) {
  compiled ??= compileGenerator(stage);
  const generator = join(await compiled, GENERATOR.replace(/ts$/, 'js'));
  await createRequire(import.meta.url)(generator).writeTransformersModel(folder, 'nowhere');
}

/** The code of docs/transformers-js.md as it stands there, but for where its model is. */
const transformersPage = {
  name: 'docs/transformers-js.md',
  long: true,
  async run(stage) {
    const cwd = await stage.projectWith(this.name, { tools: EXAMPLES['transformers-js'].tools });
    await writeModel(stage, join(cwd, 'models', 'encoder'));
    const [, code] = /^```js\n([\s\S]*?)^```/m.exec(stage.read('docs/transformers-js.md'));
    const script = `
      import { env } from '@huggingface/transformers';
      Object.assign(env, { allowRemoteModels: false, localModelPath: '' });
      ${code.replaceAll("'/models/", `'${cwd}/models/`)}
      console.log((await extract('the weights', { pooling: 'mean' })).dims.join());
      await extract.dispose();`;
    writeFileSync(join(cwd, 'page.mjs'), script);
    const { stdout } = await stage.node('node 22', ['page.mjs'], { cwd });
    if (stdout !== '1,64\n') throw new Error(`expected features of 1,64, found ${stdout}`);
    return 'the code of the page gives features';
  },
};

export const examples = [...Object.keys(EXAMPLES).map(example), transformersPage];
