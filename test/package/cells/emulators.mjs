// The package of emulators, installed beside the package: what users test 3FS and CUDA with where there is neither.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { versionOf } from '../tools.mjs';
import { addUse, said } from './installs.mjs';

const installed = {
  name: 'emulators',
  async run(stage) {
    const cwd = stage.project(this.name);
    const args = ['install', '--no-audit', stage.tarball, await stage.emulators()];
    await stage.manager('npm 12', 'node 24', args, { cwd });
    addUse(cwd);
    const uses = said(await stage.node('node 24', ['emulated.cjs'], { cwd }));
    const targets = readdirSync(join(cwd, 'node_modules', 'fastsafetensors-node-emulators', 'lib'));
    return `npm ${versionOf('npm 12')} without a compiler, libraries for ${targets.join()}: ${uses}`;
  },
};

export const emulators = [installed];
