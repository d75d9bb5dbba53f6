import { join } from 'node:path';
import { ParallelLoader, registeredCopiers, saveFile } from 'fastsafetensors-node';
import ts from 'typescript';
import { fits, readCopierPage } from './support/copier-page.js';
import { testFolder } from './support/tensor-files.js';

const TOP = join(__dirname, '..');
const folder = testFolder();
const page = readCopierPage(TOP);

test("the page's copier of one's own loads a file", async () => {
  const { outputText } = ts.transpileModule(page.own, { compilerOptions: { module: ts.ModuleKind.CommonJS } });
  new Function('require', 'exports', outputText)(require, {});
  expect(registeredCopiers()).toContain('ranges');
  const path = join(folder, 'model.safetensors');
  const data = Uint8Array.from({ length: 3_000_000 }, (_, i) => i % 251);
  await saveFile([{ name: 'w', dtype: 'U8', shape: [data.length], data }], path);
  await using loader = new ParallelLoader({ files: path, copier: 'ranges' });
  for await (const [, tensor] of loader.iterateWeights())
    expect(Buffer.compare(Buffer.from(await tensor.toHost()), Buffer.from(data))).toBe(0);
  expect(loader.report).toMatchObject({ copier: 'ranges', tensors: 1 });
});

test("the page's built-in copier changes three files at most, and its edits fit the code", () => {
  expect(new Set(page.edits.map(({ path }) => path)).size).toBeLessThanOrEqual(3);
  expect(page.files.size).toBe(3);
  expect(page.edits).toHaveLength(5);
  for (const edit of page.edits) expect([edit, fits(TOP, edit)]).toEqual([edit, 1]);
});
