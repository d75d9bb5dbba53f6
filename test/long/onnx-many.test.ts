import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkOnnxSplit } from '../../src/models/onnx/check-split.js';
import type { Message } from '../../src/models/onnx/protobuf.js';
import { GRAPH } from '../../src/models/onnx/schema.js';
import { splitOnnx } from '../../src/models/onnx/split.js';
import { bytesOf, floats, graph, message, node, rawTensor, value } from '../support/onnx-model.js';
import { testFolder } from '../support/tensor-files.js';

// What is linear takes seconds, what is not takes minutes. Processor time, since the machine may be busy.

const COUNT = 100_000;
const MAX_SECONDS = 5;
const folder = testFolder();
const data = floats(256);
const weights = Array.from({ length: COUNT }, (_, i) => `layer.${i}.weight`);
const add = (i: number) => node('Add', [i === 0 ? 'x' : `t${i - 1}`, weights[i]!], [i === COUNT - 1 ? 'y' : `t${i}`]);
const ports = { inputs: [value('x', [256])], outputs: [value('y', [256])] };
const initializers = () => weights.map((name) => rawTensor(name, [256], data));

const models: Record<string, () => { parts: Message; irVersion?: number }> = {
  initializers: () => ({
    parts: graph({ nodes: weights.map((_, i) => add(i)), initializers: initializers(), ...ports }),
  }),
  'Constant nodes': () => ({
    parts: graph({
      nodes: weights.flatMap((name, i) => [
        node('Constant', [], [name], { value: { tensor: rawTensor('', [256], data) } }),
        add(i),
      ]),
      ...ports,
    }),
  }),
  'initializers and value_info for each': () => {
    const { parts } = models.initializers!();
    for (const name of weights) parts.addMessage(GRAPH.valueInfo, value(name, [256]));
    return { parts };
  },
  'initializers that are inputs too, in an old IR version': () => {
    const { parts } = models.initializers!();
    for (const name of weights) parts.addMessage(GRAPH.input, value(name, [256]));
    return { parts, irVersion: 3 };
  },
};

describe.each(Object.entries(models))(`${COUNT} %s`, (_, build) => {
  const path = join(folder, 'm.onnx');
  beforeAll(() => {
    const { parts, irVersion = 8 } = build();
    writeFileSync(path, message({ 1: irVersion, 8: message({ 2: 13 }), 7: parts }).encode());
  });
  afterAll(() => rmSync(path));

  test.each([false, true])('are split and checked in seconds (as inputs: %s)', async (asInputs) => {
    const seconds = async <T>(work: Promise<T>): Promise<[T, number]> => {
      const before = process.cpuUsage();
      const result = await work;
      const { user, system } = process.cpuUsage(before);
      return [result, (user + system) / 1e6];
    };
    const [report, split] = await seconds(splitOnnx(path, { out: join(folder, 'out'), asInputs }));
    expect(report.tensors.length).toBe(COUNT);
    const [bytes, check] = await seconds(checkOnnxSplit(report));
    expect(bytes).toBe(COUNT * bytesOf(data).length);
    console.log(`split ${split.toFixed(2)} s, check ${check.toFixed(2)} s of processor time`);
    expect(split).toBeLessThan(MAX_SECONDS);
    expect(check).toBeLessThan(MAX_SECONDS);
  });
});
