import { emulators } from 'fastsafetensors-node/testing';
import { type AddModel, writeAddModel } from '../support/add-model.js';
import { runChild } from '../support/child.js';
import { endAtRandom, seed } from '../support/random-ends.js';
import { testFolder } from '../support/tensor-files.js';

// Emulated GPUs: host access to their memory crashes; a use after free, or a leak, ends the process and says why.

const folder = testFolder();

let files: AddModel;
beforeAll(async () => {
  files = await writeAddModel(folder);
});

async function run(scenario: string, runtime: 'real' | 'emulated'): Promise<void> {
  const ended = await runChild(
    'adapters/ort-cuda-emulated.child.cjs',
    [scenario, runtime, files.graph, files.weights],
    {
      flags: ['--expose-gc'],
      env: emulators.cuda.env({ DEVICES: 2, DELAY_US: 50, JITTER_US: 50, LEAKS: 'abort-memory' }),
    },
  );
  // Contexts stay retained for the process's life.
  const said = ended.stderr.replace(/^emulated CUDA: alive at exit: \d retained contexts\n$/m, '');
  expect({ ...ended, stderr: said }).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}

describe('onnxruntime-node on memory of emulated GPUs', () => {
  test('OrtValues have the pointer, the device and the vendor id', () => run('values', 'real'));
  test('devices that differ are typed errors', () => run('mismatches', 'real'));
  test('tensors of onnxruntime(ort) outlive their buffer', () => run('adopted', 'real'));
  test('without its provider nothing is loaded', () => run('noProvider', 'real'));
});

describe('an emulated ONNX Runtime with sessions on emulated GPUs', () => {
  test.each([
    ['computes', 'weights, feeds and outputs are used where they are'],
    ['mismatches', 'devices that differ are typed errors before ONNX Runtime is called'],
    ['shared', 'one set of weights serves several sessions, whatever ends first'],
    ['randomOrders', 'buffers, sessions, tensors and outputs end and are collected in random orders'],
    ['workers', 'workers and the main thread at once'],
    ['naturalEnd', 'the process ends with everything open'],
  ])('%s: %s', (scenario) => run(scenario, 'emulated'));

  test.each(['exit', 'uncaught'] as const)(
    'ended by %s at random moments of sessions, a process has the right exit code',
    async (ending) => {
      const env = {
        ...emulators.cuda.env({ DELAY_US: 300, LEAKS: 'off' }),
        FST_EMU_ORT_LEAKS: '0',
        FST_EMU_ORT_US: '50000',
      };
      const args = ['endAt', 'emulated', files.graph, files.weights];
      const wrong = await endAtRandom(ending, 12, (...moment) =>
        runChild('adapters/ort-cuda-emulated.child.cjs', [...args, ...moment], { env }),
      );
      expect({ seed, wrong }).toEqual({ seed, wrong: [] });
    },
    180_000,
  );
});
