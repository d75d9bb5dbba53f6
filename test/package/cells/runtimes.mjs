// The package as npm 12 installed it, in every version of Node that is promised, in worker threads, and elsewhere.
import { run } from '../run.mjs';
import { tool, versionOf } from '../tools.mjs';
import { addUse, said } from './installs.mjs';

const onNode = (node) => ({
  name: `${node}`,
  async run(stage) {
    const cwd = await stage.projectWith(this.name);
    addUse(cwd);
    const cjs = await stage.node(node, ['use.cjs'], { cwd });
    const esm = await stage.node(node, ['use.mjs', 'worker'], { cwd });
    return `${versionOf(node)}: ${said(cjs)}; ${said(esm)}`;
  },
});

/** Under a test runner, with real files; with the mock see the examples. */
const runner = (name, version, options, program, args) => ({
  name: `under ${name}`,
  async run(stage) {
    const cwd = await stage.projectWith(this.name, options);
    addUse(cwd);
    const { stdout, stderr } = await stage.node('node 22', [program, ...args], {
      cwd,
      env: { CI: '1', NO_COLOR: '1' },
    });
    if (!/\b2 passed/.test(stdout + stderr)) throw new Error(`expected 2 passed:\n${stdout}${stderr}`);
    return `${version(stage)}: 2 passed`;
  },
});

/** No promise: what docs/bundlers.md says works there. */
const elsewhere = (name, args) => ({
  name,
  long: true,
  async run(stage) {
    const cwd = await stage.projectWith(name);
    addUse(cwd);
    const path = await stage.pathOf('node 24');
    const program = await tool(stage.top, name);
    const cjs = await run(program, [...args, 'use.cjs'], { cwd, path });
    const esm = await run(program, [...args, 'use.mjs'], { cwd, path });
    return `${name} ${versionOf(name)}: ${said(cjs)}; ${said(esm)}`;
  },
});

export const runtimes = [
  onNode('node 20'),
  onNode('node 22'),
  onNode('node 24'),
  runner(
    'jest',
    (stage) => JSON.parse(stage.read('package-lock.json')).packages['node_modules/jest'].version,
    { packages: ['jest'] },
    'node_modules/jest/bin/jest.js',
    ['--testMatch', '**/jest.test.cjs'],
  ),
  runner('vitest', () => versionOf('vitest'), { tools: [['vitest', 'vitest']] }, 'node_modules/vitest/vitest.mjs', [
    'run',
    'vitest.test',
  ]),
  elsewhere('deno', ['run', '--allow-all', '--node-modules-dir=manual']),
  elsewhere('bun', ['run']),
];
