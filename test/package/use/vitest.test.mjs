import * as main from 'fastsafetensors-node';
import * as ort from 'fastsafetensors-node/ort';
import * as testing from 'fastsafetensors-node/testing';
import * as tfjs from 'fastsafetensors-node/tfjs';
import { expect, test } from 'vitest';
import { load } from './load.cjs';

test('the package is used', async () => {
  await load({ main, ort, testing, tfjs }, 'ESM');
});

test('data is an array of this realm', async () => {
  const tensors = await main.loadFile('ESM.safetensors');
  expect(tensors.w.data).toBeInstanceOf(Float32Array);
  expect(tensors.w.data).toEqual(Float32Array.of(1, 2, 3, 4));
});
