import { execFileSync } from 'node:child_process';
import { cpSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { applyCopierPage, readCopierPage } from '../support/copier-page.js';
import { testFolder } from '../support/tensor-files.js';

// docs/adding-a-copier.md, done: in a copy of the tree, which is built, type-checked and used.

const TOP = join(__dirname, '..', '..');
const tree = join(testFolder(), 'tree');
const run = (command: string, ...args: string[]) =>
  execFileSync(command, args, { cwd: tree, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

test("the page's copiers compile, and the built-in one loads onto host and device", () => {
  const listed = execFileSync('git', ['ls-files', '-co', '--exclude-standard'], { cwd: TOP, encoding: 'utf8' });
  for (const file of listed.trim().split('\n')) cpSync(join(TOP, file), join(tree, file));
  symlinkSync(join(TOP, 'node_modules'), join(tree, 'node_modules'));
  const page = readCopierPage(tree);
  applyCopierPage(tree, page);
  writeFileSync(join(tree, 'test', 'types', 'own-copier.ts'), page.own);
  run(process.execPath, 'scripts/setup.mjs');
  run(process.execPath, 'node_modules/typescript/bin/tsc', '-p', 'test');

  const script = `
    const { copierAvailability, ParallelLoader, saveFile } = require('fastsafetensors-node');
    const { useFakeDevices } = require('fastsafetensors-node/testing');
    useFakeDevices({});
    (async () => {
      const data = Uint8Array.from({ length: 30_000_000 }, (_, i) => i % 251);
      await saveFile([{ name: 'w', dtype: 'U8', shape: [data.length], data }], 'w.safetensors');
      const { available } = await copierAvailability('plain');
      for (const device of ['cpu', 'cuda:0']) {
        const loader = new ParallelLoader({ files: 'w.safetensors', copier: 'plain', device });
        for await (const [name, tensor] of loader.iterateWeights()) {
          const same = Buffer.compare(Buffer.from(await tensor.toHost()), Buffer.from(data)) === 0;
          console.log(device, name, same, loader.report.copier, available);
          tensor.dispose();
        }
        await loader.close();
      }
    })();`;
  expect(run(process.execPath, '-e', script)).toBe('cpu w true plain true\ncuda:0 w true plain true\n');
});
