// What linters of packages and the compiler say of the packed package.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../run.mjs';
import { tool, versionOf } from '../tools.mjs';

const publint = {
  name: 'publint',
  async run(stage) {
    const program = join(stage.top, 'node_modules', 'publint', 'src', 'cli.js');
    await run(process.execPath, [program, 'run', stage.tarball, '--strict'], { cwd: stage.folder });
    return 'publint --strict: nothing to say';
  },
};

const attw = {
  name: 'attw',
  async run(stage) {
    // The schema is no module.
    const args = [stage.tarball, '--format', 'json', '--exclude-entrypoints', './fastsafetensors.schema.json'];
    const { stdout } = await stage.node('node 24', [await tool(stage.top, 'attw'), ...args], {
      cwd: stage.folder,
      code: null,
    });
    const { analysis, problems } = JSON.parse(stdout);
    const found = Object.values(problems ?? {}).flat();
    if (found.length > 0) {
      const list = found.map(({ kind, entrypoint, resolutionKind }) => `${kind} ${entrypoint} ${resolutionKind}`);
      throw new Error(`expected no problems, found:\n${list.join('\n')}`);
    }
    const entries = Object.entries(analysis.entrypoints);
    const kinds = new Set(entries.flatMap(([, { resolutions }]) => Object.keys(resolutions)));
    return `attw ${versionOf('attw')}: ${entries.map(([name]) => name).join(' ')}, each by ${[...kinds].join(' ')}`;
  },
};

const SOURCE = `
  import { type DeviceTensor, ParallelLoader } from 'fastsafetensors-node';
  import { createSession, onnxruntime } from 'fastsafetensors-node/ort';
  import { emulators, mockCopier } from 'fastsafetensors-node/testing';
  import { loadGraphModel, tfjs } from 'fastsafetensors-node/tfjs';
  export const used = [ParallelLoader, createSession, onnxruntime, emulators, mockCopier, loadGraphModel, tfjs];
  export const shapeOf = (tensor: DeviceTensor): readonly number[] => tensor.shape;
  // @ts-expect-error there is none of this name: the types are there, and not any
  export type Missing = import('fastsafetensors-node').NoSuchName;
`;

const tsc = (resolution, ...options) => ({
  name: `tsc ${resolution}`,
  async run(stage) {
    const cwd = await stage.projectWith(this.name, { packages: ['@types/node', 'undici-types'] });
    writeFileSync(join(cwd, 'user.ts'), SOURCE);
    const program = join(stage.top, 'node_modules', 'typescript', 'bin', 'tsc');
    const args = ['--strict', '--noEmit', '--target', 'es2022', '--lib', 'es2023,esnext.disposable,dom', ...options];
    await run(process.execPath, [program, ...args, 'user.ts'], { cwd });
    return `strict, with the checks of declarations: ${options.join(' ')}`;
  },
});

export const types = [
  publint,
  attw,
  tsc('node10', '--module', 'commonjs', '--moduleResolution', 'node10', '--ignoreDeprecations', '6.0'),
  tsc('node16', '--module', 'node16', '--moduleResolution', 'node16'),
  tsc('bundler', '--module', 'esnext', '--moduleResolution', 'bundler'),
];
