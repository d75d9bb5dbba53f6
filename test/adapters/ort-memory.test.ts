import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { basename, join } from 'node:path';
import { SafeTensorsMetadata } from '../../src/index.js';
import { writeBigModel } from '../support/big-onnx.js';
import { runChild } from '../support/child.js';
import { bytesOf, externalTensor, floats, model, node, rawTensor, value } from '../support/onnx-model.js';
import { testFolder } from '../support/tensor-files.js';

// Memory that a model costs on the host: its weights once, however many sessions of loaded weights there are.

const folder = testFolder();
const WIDTH = 4096;
/** Of the models of 128 MiB: more than ONNX Runtime may pack a second time. */
const LAYERS = 2;
const LAYER = WIDTH * WIDTH * 4;

async function measure(how: string, graph: string, weights: string, bytes: number) {
  const small = join(folder, 'small.onnx');
  writeFileSync(
    small,
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [rawTensor('w', [1], floats(1))],
      inputs: [value('x', [1, WIDTH])],
      outputs: [value('y', [1, WIDTH])],
    }),
  );
  const args = [how, graph, weights, basename(weights), String(WIDTH), small];
  const { code, stdout, stderr } = await runChild('adapters/ort-memory.child.cjs', args, { flags: ['--expose-gc'] });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const { first, peak, second, ...rest } = JSON.parse(stdout);
  const percent = (figure: number) => Math.round((100 * figure) / bytes);
  return { ...rest, first: percent(first), peak: percent(peak), second: percent(second) };
}

// onnxruntime-node has twice the weights while it makes a session, and a copy in each.
test('a session costs its weights and at most 10 %, a second one 10 % more', async () => {
  const { graph, weights, bytes } = await writeBigModel(join(folder, 'big'), 8, WIDTH);
  expect(bytes).toBe(512 * 2 ** 20);
  const ours = await measure('ours', graph, weights, bytes);
  const theirs = await measure('theirs', graph, weights, bytes);

  expect(ours.hostBytes).toBeLessThan(bytes * 1.01);
  expect(ours.same).toBe(true);
  for (const [i, output] of ours.outputs.entries()) expect(output).toBeCloseTo(theirs.outputs[i], 4);
  expect(ours.first).toBeLessThanOrEqual(110);
  expect(ours.peak).toBeLessThanOrEqual(110);
  expect(ours.second).toBeLessThanOrEqual(10);
  // The baseline says that the measurement sees copies.
  expect(theirs.peak).toBeGreaterThan(190);
  expect(theirs.second).toBeGreaterThan(90);
});

// The graph has its weights inside as most models have: they are not even read where others take their place.
test('weights inside a graph cost nothing when the option weights replaces them', async () => {
  const { weights, bytes } = await writeBigModel(join(folder, 'inside'), LAYERS, WIDTH);
  const graph = join(folder, 'inside.onnx');
  const { dataStart } = await SafeTensorsMetadata.fromFile(weights);
  const file = readFileSync(weights);
  const layers = Array.from({ length: LAYERS }, (_, i) => {
    const data = new Float32Array(file.buffer.slice(dataStart + i * LAYER, dataStart + (i + 1) * LAYER));
    return rawTensor(`layer.${i}.weight`, [WIDTH, WIDTH], data);
  });
  writeFileSync(graph, model({ ...chain(), initializers: layers }));
  const { first, peak, hostBytes } = await measure('files', graph, weights, bytes);
  expect(hostBytes).toBeLessThan(2.01 * bytes); // of two sessions, each with weights of its own
  expect(first).toBeLessThanOrEqual(120);
  expect(peak).toBeLessThanOrEqual(120);
});

test('external data of a model, without the option weights, cost their bytes once', async () => {
  const bytes = LAYERS * LAYER;
  const data = openSync(join(folder, 'model.onnx_data'), 'w');
  const layers = Array.from({ length: LAYERS }, (_, i) => {
    writeSync(data, bytesOf(new Float32Array(LAYER / 4).fill(1 / WIDTH / (i + 1))));
    const place = { location: 'model.onnx_data', offset: String(i * LAYER), length: String(LAYER) };
    return externalTensor(`layer.${i}.weight`, [WIDTH, WIDTH], place);
  });
  closeSync(data);
  const graph = join(folder, 'model.onnx');
  writeFileSync(graph, model({ ...chain(), initializers: layers }));
  const { first, peak, hostBytes } = await measure('files', graph, '', bytes);
  expect(hostBytes).toBe(2 * bytes);
  expect(first).toBeLessThanOrEqual(120);
  expect(peak).toBeLessThanOrEqual(120);
});

/** LAYERS MatMuls by layer.i.weight. */
function chain() {
  return {
    nodes: Array.from({ length: LAYERS }, (_, i) =>
      node('MatMul', [i === 0 ? 'x' : `t${i}`, `layer.${i}.weight`], [i === LAYERS - 1 ? 'y' : `t${i + 1}`]),
    ),
    inputs: [value('x', [1, WIDTH])],
    outputs: [value('y', [1, WIDTH])],
  };
}
