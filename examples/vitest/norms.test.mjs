// The mock takes the place of files and of the device: npm test
import { registerCopier } from 'fastsafetensors-node';
import { mockCopier } from 'fastsafetensors-node/testing';
import { expect, test } from 'vitest';
import { norms } from './norms.mjs';

test('norms are those of the tensors', async () => {
  registerCopier('mock', mockCopier({ tensors: { w: Float32Array.of(3, 4), b: Float32Array.of(2) } }));
  expect(await norms('any name', 'mock')).toEqual({ w: 5, b: 2 });
});

test('what fails while it loads is told', async () => {
  registerCopier('failing', mockCopier({ tensors: { w: Float32Array.of(1) }, failAt: 'w' }));
  await expect(norms('any name', 'failing')).rejects.toMatchObject({ code: 'IO_ERROR', tensor: 'w' });
});
