import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { testFolder } from '../support/tensor-files.js';

// The package as its users get it: packed, installed from source into a project of its own, and used through both kinds
// of modules.

const folder = testFolder();
const top = resolve(__dirname, '../..');
const run = (command: string, args: readonly string[], cwd: string) =>
  execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

test('it is installed from its packed form and loads a file it wrote, as CommonJS and as ES modules', () => {
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], top));
  const project = join(folder, 'project');
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"private":true}');
  const install = ['install', '--ignore-scripts=false', '--no-audit', '--no-fund', join(folder, packed.filename)];
  run('npm', install, project);

  const body = `
    (async () => {
      await saveFile([{ name: 'w', dtype: 'U8', shape: [3], data: Uint8Array.of(1, 2, 3) }], 'w.safetensors');
      const loader = new ParallelLoader({ files: 'w.safetensors' });
      for await (const [name, tensor] of loader.iterateWeights()) console.log(name, [...tensor.data].join());
      await loader.close();
      try { emulators.cuda.env(); } catch (error) { console.log(error.code); }
    })();`;
  writeFileSync(
    join(project, 'load.cjs'),
    `const { ParallelLoader, saveFile } = require('fastsafetensors-node');
     const { emulators } = require('fastsafetensors-node/testing');${body}`,
  );
  writeFileSync(
    join(project, 'load.mjs'),
    `import { ParallelLoader, saveFile } from 'fastsafetensors-node';
     import { emulators } from 'fastsafetensors-node/testing';${body}`,
  );
  for (const script of ['load.cjs', 'load.mjs'])
    expect(run(process.execPath, [script], project)).toBe('w 1,2,3\nCOPIER_UNAVAILABLE\n');
  const inspected = run('npx', ['--no', 'fastsafetensors', 'inspect', 'w.safetensors'], project);
  expect(inspected).toContain('w');
});
