import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SafeTensorsMetadata } from '../src/safetensors/metadata.js';
import { saveFile } from '../src/safetensors/save-file.js';

// Apart from the other tests of saveFile: those run in worker threads too, which cannot change the process's user.

test('a folder that may be written but not read takes the file', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fst-rights-'));
  const inside = join(folder, 'write-only');
  mkdirSync(inside);
  const target = join(inside, 'm.safetensors');
  chmodSync(folder, 0o755);
  chmodSync(inside, 0o333);
  const user = process.geteuid!();
  if (user === 0) process.seteuid!(65534); // root may read it nevertheless
  try {
    await saveFile([{ name: 'a', dtype: 'U8', shape: [3], data: new Uint8Array(3) }], target);
  } finally {
    if (user === 0) process.seteuid!(0);
    chmodSync(inside, 0o755);
  }
  expect(readdirSync(inside)).toEqual(['m.safetensors']);
  expect((await SafeTensorsMetadata.fromFile(target)).keys()).toEqual(['a']);
  rmSync(folder, { recursive: true });
});
