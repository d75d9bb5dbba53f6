import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession, registerBackend } from '../../adapters/ort/index.js';
import { type ExampleModel, MODELS } from '../../demo/models.js';
import { type FilesBufferOnDevice, nativeMetrics, SafeTensorsFileLoader } from '../../src/index.js';
import { compareOutputs } from '../../src/models/onnx/compare-outputs.js';
import { splitOnnx } from '../../src/models/onnx/split.js';

type Outputs = ort.InferenceSession.ReturnType;
interface Session {
  run(feeds: Record<string, ort.Tensor>): Promise<Outputs>;
  release(): Promise<void>;
}

/** A model split in both ways, and its weights loaded once. */
interface Parts {
  readonly model: ExampleModel;
  readonly pointing: { graph: string; weights: string };
  readonly taking?: { graph: string; weights: string };
  readonly buffer: FilesBufferOnDevice;
}

const TAKING = 'weights that were inputs of the graph';
const quiet = { logSeverityLevel: 3 } as const;

/** How a model and its weights reach a session. Exact ones show the optimizer the same constants as the original. */
const ROUTES: readonly { name: string; exact: boolean; open(parts: Parts): Promise<Session> }[] = [
  {
    name: 'path, weights inside',
    exact: true,
    open: ({ model }) => createSession(ort, model.file, { sessionOptions: quiet }),
  },
  {
    name: 'bytes, weights inside',
    exact: true,
    open: async ({ model }) => createSession(ort, await readFile(model.file), { sessionOptions: quiet }),
  },
  {
    name: 'external data in .safetensors',
    exact: true,
    open: ({ pointing }) => createSession(ort, pointing.graph, { sessionOptions: quiet }),
  },
  {
    name: 'external data in .safetensors, by the execution provider',
    exact: true,
    open: ({ pointing }) =>
      ort.InferenceSession.create(pointing.graph, { executionProviders: ['fastsafetensors'], ...quiet }),
  },
  {
    name: 'split weights, path',
    exact: true,
    open: ({ pointing: { graph, weights } }) => createSession(ort, graph, { weights, sessionOptions: quiet }),
  },
  {
    name: 'split weights, bytes',
    exact: true,
    open: async ({ pointing: { graph, weights } }) =>
      createSession(ort, await readFile(graph), { weights, sessionOptions: quiet }),
  },
  {
    name: TAKING,
    exact: true,
    open: ({ taking }) => createSession(ort, taking!.graph, { weights: taking!.weights, sessionOptions: quiet }),
  },
  {
    name: 'a set of weights that other sessions use',
    exact: true,
    open: ({ pointing, buffer }) => createSession(ort, pointing.graph, { weights: buffer, sessionOptions: quiet }),
  },
  {
    name: 'another session on that set',
    exact: true,
    open: async ({ pointing, buffer }) =>
      createSession(ort, await readFile(pointing.graph), { weights: buffer, sessionOptions: quiet }),
  },
  {
    name: 'without prepacking',
    exact: false,
    open: ({ pointing: { graph, weights } }) =>
      createSession(ort, graph, {
        weights,
        sessionOptions: { ...quiet, extra: { session: { disable_prepacking: '1' } } },
      }),
  },
];

const bitsOf = (outputs: Outputs): string[] =>
  Object.entries(outputs).map(([name, { data, dims }]) => {
    const { buffer, byteOffset, byteLength } = data as Float32Array;
    return `${name} [${dims}] ${Buffer.from(buffer, byteOffset, byteLength).toString('base64')}`;
  });

/** Every model of npm gives onnxruntime-node's own outputs through every route, for so many inputs. */
export function testRoutes(inputsOfEach: number): void {
  describe.each(MODELS)('$name', (model) => {
    let folder: string;
    let parts: Parts;
    let inputs: Record<string, ort.Tensor>[];
    let expected: Outputs[];

    beforeAll(async () => {
      registerBackend(ort);
      folder = await mkdtemp(join(tmpdir(), 'ort-models-'));
      const pointing = await splitOnnx(model.file, { out: folder });
      await mkdir(join(folder, 'inputs'));
      const taking = model.modes.includes('inputs')
        ? await splitOnnx(model.file, { out: join(folder, 'inputs'), asInputs: true })
        : undefined;
      const loader = new SafeTensorsFileLoader();
      await loader.addFilenames(pointing.weights);
      parts = { model, pointing, taking, buffer: await loader.copyFilesToDevice() };
      await loader.close();

      inputs = Array.from({ length: inputsOfEach }, (_, i) =>
        Object.fromEntries(
          Object.entries(model.feeds(i + 1)).map(([name, { type, data, dims }]) => [
            name,
            new ort.Tensor(type, data, dims),
          ]),
        ),
      );
      const original = await ort.InferenceSession.create(model.file, quiet);
      expected = [];
      for (const feeds of inputs) expected.push(await original.run(feeds));
      await original.release();
      // Inputs that all give the same would show nothing.
      expect(new Set(expected.map((outputs) => bitsOf(outputs).join())).size).toBe(inputsOfEach);
    });
    afterAll(async () => {
      await parts.buffer.close();
      await rm(folder, { recursive: true });
    });

    const check = (found: Outputs, index: number, exact: boolean): void => {
      if (exact) expect(bitsOf(found)).toEqual(bitsOf(expected[index]!));
      else expect(compareOutputs(found, expected[index]!)).toMatchObject({ withinTolerance: true });
    };

    const routes = ROUTES.filter(({ name }) => name !== TAKING || model.modes.includes('inputs'));
    test.each(routes)('$name', async ({ open, exact }) => {
      const session = await open(parts);
      // Comparing number by number takes longer than the runs.
      const some = exact ? inputs : inputs.slice(0, 10);
      for (const [i, feeds] of some.entries()) check(await session.run(feeds), i, exact);
      await session.release();
    });

    test('concurrent runs of two sessions on one set of weights', async () => {
      const { pointing, buffer } = parts;
      const sessions = await Promise.all(
        [0, 1].map(() => createSession(ort, pointing.graph, { weights: buffer, sessionOptions: quiet })),
      );
      const held = nativeMetrics().hostBytes;
      for (let at = 0; at < inputsOfEach; at += 10) {
        await Promise.all(
          inputs
            .slice(at, at + 10)
            .flatMap((feeds, i) => sessions.map(async (session) => check(await session.run(feeds), at + i, true))),
        );
      }
      expect(nativeMetrics().hostBytes).toBe(held);
      for (const session of sessions) await session.release();
    });
  });
}
