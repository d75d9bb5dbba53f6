import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { type Machine, nodeOf } from '../support/other-machines.js';
import { testFolder } from '../support/tensor-files.js';

// Prebuilt binaries of other machines, in their own Node: arm64 under qemu, musl under musl's loader. The package lies
// as an installed one, so that node-gyp-build chooses among all that are there.

const folder = testFolder();
const top = resolve(__dirname, '../..');
const machines: Machine[] = ['linux-arm64.glibc', 'linux-x64.musl', 'linux-arm64.musl'];

beforeAll(() => {
  const modules = join(folder, 'node_modules');
  mkdirSync(modules);
  for (const name of ['dist', 'prebuilds', 'package.json'])
    cpSync(join(top, name), join(modules, 'fastsafetensors-node', name), { recursive: true });
  for (const name of ['node-gyp-build', 'commander'])
    cpSync(join(top, 'node_modules', name), join(modules, name), { recursive: true });
  writeFileSync(
    join(folder, 'use.cjs'),
    `const { loadFile, nativeMetrics, ParallelLoader, saveFile, SafeTensorsMetadata } = require('fastsafetensors-node');
    (async () => {
      const data = Float32Array.from({ length: 300_000 }, (_, i) => i % 1000);
      await saveFile([{ name: 'w', dtype: 'F32', shape: [300, 1000], data }], 'model.safetensors');
      const { w } = await loadFile('model.safetensors');
      console.log(process.arch, w.shape.join('x'), w.data.reduce((sum, value) => sum + value, 0));
      for (const options of [{ dtype: 'BF16' }, { staging: 'always', reader: undefined }]) {
        const loader = new ParallelLoader({ files: 'model.safetensors', ...options });
        for await (const [name, tensor] of loader.iterateWeights()) {
          const bytes = new Uint8Array(await tensor.toHost());
          console.log(name, tensor.dtype, bytes.length, bytes.reduce((sum, value) => sum + value, 0));
          tensor.dispose();
        }
        await loader.close();
      }
      w.dispose();
      await SafeTensorsMetadata.fromFile('none').catch(({ code, message }) => console.log(code, message));
      console.log(nativeMetrics().openFiles);
    })();`,
  );
});

function use([program, ...args]: string[], env: NodeJS.ProcessEnv): string {
  const { FASTSAFETENSORS_NATIVE: _, ...rest } = process.env;
  return execFileSync(program!, [...args, 'use.cjs'], { cwd: folder, encoding: 'utf8', env: { ...rest, ...env } });
}

test.each(machines)('%s: the binary loads a model, as here', (machine) => {
  const [platform, libc] = machine.split('.');
  const binary = join(top, 'prebuilds', platform!, `fastsafetensors-node.${libc}.node`);
  if (!existsSync(binary)) throw new Error(`${binary} is not there: run npm run prebuild`);
  const here = use([process.execPath], { LIBC: 'glibc' });
  const there = use(nodeOf(machine), { LIBC: libc });
  expect(here).toContain('300x1000 149850000');
  expect(here).toContain('IO_ERROR');
  expect(there.replace(/^arm64/, 'x64')).toBe(here);
});
