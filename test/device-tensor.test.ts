import { rm } from 'node:fs/promises';
import { type DeviceTensor, ParallelLoader } from 'fastsafetensors-node';
import { expectNothingHeld } from './support/metrics.js';
import { entry, newFolder, writeModel } from './support/model-files.js';

// A tensor that was tampered with reaches no memory but its own allocation.

test('a byteLength that was changed by force cannot reach outside the allocation', async () => {
  const folder = await newFolder();
  const loader = new ParallelLoader({ files: await writeModel(folder, [entry('w', 'U8', [100])]) });
  for await (const [, tensor] of loader.iterateWeights()) {
    (tensor as { byteLength: number }).byteLength = 2 ** 40;
    await expect(tensor.toHost({ offset: 2 ** 33, length: 10 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(tensor.clone()).rejects.toMatchObject({
      code: expect.stringMatching(/INVALID_ARGUMENT|OUT_OF_HOST_MEMORY/),
    });
    (tensor as { byteLength: number }).byteLength = 2 ** 31;
    expect(() => (tensor as DeviceTensor).data).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    tensor.dispose();
  }
  await loader.close();
  await rm(folder, { recursive: true });
  await expectNothingHeld();
});
