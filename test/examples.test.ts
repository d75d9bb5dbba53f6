import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { exampleModel } from './support/example-model.js';

// What holds of examples/ without running them; `npm run test:package` runs each against the packed package.

const TOP = join(__dirname, '..');
const EXAMPLES = join(TOP, 'examples');
const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'));
const names = readdirSync(EXAMPLES, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);

test('the page of examples lists each of them, and no other', () => {
  const page = readFileSync(join(EXAMPLES, 'README.md'), 'utf8');
  const listed = [...page.matchAll(/\[([\w-]+)\]\(\1\)/g)].map(([, name]) => name);
  expect(listed.sort()).toEqual([...names].sort());
});

test.each(names)(
  '%s is a project by itself: this version of the package, and nothing from outside its folder',
  (name) => {
    const { dependencies, devDependencies = {}, scripts } = json(EXAMPLES, name, 'package.json');
    expect(scripts.start ?? scripts.test).toBeDefined();
    const { version, devDependencies: ours } = json(TOP, 'package.json');
    expect(dependencies['fastsafetensors-node']).toBe(`^${version}`);
    for (const [peer, range] of Object.entries<string>({ ...dependencies, ...devDependencies })) {
      const major = range.match(/^\^(\d+)\./)![1];
      if (ours[peer]) expect([peer, major]).toEqual([peer, ours[peer].match(/(\d+)\./)[1]]);
    }
    for (const file of readdirSync(join(EXAMPLES, name))) {
      if (/\.[cm]?[jt]s$/.test(file))
        expect(readFileSync(join(EXAMPLES, name, file), 'utf8')).not.toMatch(/['"]\.\.\//);
    }
  },
);

test.each(['ort-session', 'ort-3fs'])('model.onnx of %s is what support/example-model.ts writes', (name) => {
  expect(Buffer.compare(readFileSync(join(EXAMPLES, name, 'model.onnx')), exampleModel())).toBe(0);
});
