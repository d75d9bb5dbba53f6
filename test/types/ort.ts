// Compiled by test/adapters/ort-types.test.ts, never run: what users of ort.InferenceSession write compiles unchanged.
import type { DeviceTensor, FilesBufferOnDevice } from 'fastsafetensors-node';
import { FastSafetensorsError, ParallelLoader, SafeTensorsFileLoader } from 'fastsafetensors-node';
import {
  createSession,
  type ExecutionProvider,
  OrtDeviceBuffer,
  onnxruntime,
  registerBackend,
  UnmatchedWeightsError,
} from 'fastsafetensors-node/ort';
import * as ort from 'onnxruntime-node';

async function infer(session: ort.InferenceSession, x: ort.Tensor): Promise<Float32Array> {
  const feeds: Record<string, ort.Tensor> = { [session.inputNames[0]!]: x };
  const results: ort.InferenceSession.OnnxValueMapType = await session.run(feeds, { tag: 'one', logSeverityLevel: 3 });
  const some = await session.run(feeds, ['y']);
  const given = await session.run(feeds, { y: null });
  for (const meta of session.inputMetadata) if (meta.isTensor) void [meta.type, meta.shape];
  session.startProfiling();
  session.endProfiling();
  return [results, some, given].map(({ y }) => y!.data as Float32Array)[0]!;
}

export async function byProvider(): Promise<void> {
  registerBackend(ort);
  const session = await ort.InferenceSession.create('m.onnx', { executionProviders: ['fastsafetensors'] });
  const provider: ExecutionProvider = { name: 'fastsafetensors', device: 'cuda:0', weights: 'm.safetensors' };
  await ort.InferenceSession.create(new Uint8Array(8), {
    executionProviders: [provider, 'cpu'],
    preferredOutputLocation: 'gpu-buffer',
  });
  // @ts-expect-error a misspelled option
  const wrong: ExecutionProvider = { name: 'fastsafetensors', divice: 'cuda:0' };
  void wrong;
  await infer(session, new ort.Tensor('float32', [1], [1]));
}

export async function byFunction(buffer: FilesBufferOnDevice, signal: AbortSignal): Promise<void> {
  await using session = await createSession(ort, 'm.onnx', {
    weights: buffer,
    device: 'cuda:1',
    copier: 'auto',
    names: { 'model.w': 'w' },
    sessionOptions: {
      graphOptimizationLevel: 'all',
      intraOpNumThreads: 2,
      preferredOutputLocation: { y: 'gpu-buffer' },
    },
    signal,
    onProgress: ({ loaded, total }) => void (loaded / total),
  });
  const same: ort.InferenceSession = session;
  const unmatched: readonly string[] = session.unmatched.model;
  await infer(session, new ort.Tensor('float32', Float32Array.of(1), [1]));
  const { y } = await session.run({ x: new ort.Tensor('float32', [1], [1]) });
  if (y!.location === 'gpu-buffer' && y!.gpuBuffer instanceof OrtDeviceBuffer)
    void [y!.gpuBuffer.pointer, await y!.getData(true)];
  await same.release();
  void unmatched;

  // @ts-expect-error where it runs is said with device
  await createSession(ort, 'm.onnx', { sessionOptions: { executionProviders: ['cpu'] } });
  // @ts-expect-error a misspelled option
  await createSession(ort, 'm.onnx', { wieghts: 'm.safetensors' });
  // @ts-expect-error a model is a path or bytes
  await createSession(ort, 1);
  // @ts-expect-error weights are files or a buffer
  await createSession(ort, 'm.onnx', { weights: 1 });
  // @ts-expect-error the module itself is needed
  await createSession({}, 'm.onnx');
}

export async function byLoader(): Promise<void> {
  const loader = new ParallelLoader({ files: 'm.safetensors', framework: onnxruntime(ort) });
  for await (const [name, tensor] of loader.iterateWeights()) {
    const dims: readonly number[] = tensor.dims;
    const typed: ort.Tensor = tensor;
    void [name, dims, typed];
  }
  const single = new SafeTensorsFileLoader({ framework: onnxruntime(ort), device: 'cuda' });
  const adopted: ort.Tensor = await (await single.copyFilesToDevice()).getTensor('w');
  const raw: DeviceTensor = await (await new SafeTensorsFileLoader().copyFilesToDevice()).getTensor('w');
  void [adopted, raw];
}

export function byError(error: unknown): readonly string[] {
  if (error instanceof UnmatchedWeightsError) return error.unmatched.weights;
  return error instanceof FastSafetensorsError ? [error.code] : [];
}
