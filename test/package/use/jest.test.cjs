const main = require('fastsafetensors-node');
const ort = require('fastsafetensors-node/ort');
const testing = require('fastsafetensors-node/testing');
const tfjs = require('fastsafetensors-node/tfjs');
const { load } = require('./load.cjs');

test('the package is used', async () => {
  await load({ main, ort, testing, tfjs }, 'CommonJS');
});

test('data is an array of this realm', async () => {
  const tensors = await main.loadFile('CommonJS.safetensors');
  expect(tensors.w.data).toBeInstanceOf(Float32Array);
  expect(tensors.w.data).toEqual(Float32Array.of(1, 2, 3, 4));
});
