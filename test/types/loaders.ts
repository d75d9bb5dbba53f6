// Compiled, never run: what the types of loaders, tensors and errors promise to users.
import {
  AutoLoader,
  type ConvertibleDType,
  type DeviceTensor,
  type DTypeName,
  ERROR_CODES,
  type ErrorCode,
  FastSafetensorsError,
  type Framework,
  fastsafeOpen,
  InvalidArgumentError,
  type LoaderOptions,
  type LoadReport,
  type loadConfig,
  loadFile,
  nativeMetrics,
  ParallelLoader,
  type ParallelOptions,
  ParallelThreeFSLoader,
  type Progress,
  readHeadersBatch,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  type SaveTensor,
  type SliceRange,
  saveFile,
  ThreeFSLoader,
  type TypedArrayOf,
} from 'fastsafetensors-node';

/** Compiles where the two types are the same one. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <A, B>(_: Same<A, B>): void => {};

interface MyTensor {
  readonly mine: DeviceTensor;
}
const framework: Framework<MyTensor> = { name: 'mine', adopt: (tensor) => ({ mine: tensor }) };

export async function streams(): Promise<void> {
  const plain = new ParallelLoader({ files: 'm.safetensors' });
  for await (const [name, tensor] of plain.iterateWeights()) {
    same<typeof name, string>(true);
    same<typeof tensor, DeviceTensor>(true);
    same<typeof tensor.dtype, DTypeName>(true);
    same<typeof tensor.shape, readonly number[]>(true);
    same<typeof tensor.pointer, bigint>(true);
    // @ts-expect-error a tensor's shape is not the caller's to change
    tensor.shape.push(1);
    // @ts-expect-error nor is its name
    tensor.name = 'other';
  }
  const adopting = new ParallelLoader({ files: ['a.safetensors', 'b.safetensors'], framework });
  for await (const [, tensor] of adopting.iterateWeights()) same<typeof tensor, MyTensor>(true);
  const threeFs = new ParallelThreeFSLoader({ files: '/mnt/3fs/model', framework });
  for await (const [, tensor] of threeFs.iterateWeights()) same<typeof tensor, MyTensor>(true);
  const auto: ParallelLoader<MyTensor> = new AutoLoader({ files: 'm', framework });
  same<typeof auto.report, LoadReport>(true);
  await Promise.all([plain.close(), adopting.close(), threeFs.close(), auto.close()]);
  // @ts-expect-error nothing can be streamed without files
  new ParallelLoader({ device: 'cpu' });
  // @ts-expect-error files is a path or several
  new ParallelLoader({ files: 1 });
}

export function byDtype(tensor: DeviceTensor, halves: DeviceTensor<'F16' | 'BF16'>): number {
  if (tensor.dtype === 'F32') {
    const floats: Float32Array = tensor.data;
    return floats[0]!;
  }
  if (tensor.dtype === 'I64') same<typeof tensor.data, BigInt64Array>(true);
  if (tensor.dtype === 'F4') same<typeof tensor.data, Uint8Array>(true);
  same<typeof halves.data, Uint16Array>(true);
  const [first] = tensor.data; // some typed array
  same<typeof first, number | bigint | undefined>(true);
  const all: TypedArrayOf = tensor.data;
  // @ts-expect-error it may be any of them
  const floats: Float32Array = tensor.data;
  // @ts-expect-error a DataView has no elements
  const view: DataView = tensor.data;
  const any: DeviceTensor = halves; // one of fewer dtypes is one of any
  const rows = [tensor, halves].map(({ data }) => data.length);
  void [all, floats, view, any.toJSON().device, rows];
  return tensor.data.byteLength;
}

export async function copies(tensor: DeviceTensor<'F32'>, any: DeviceTensor): Promise<DeviceTensor> {
  const copy: Float32Array = (await tensor.clone()).data;
  void copy;
  return any.clone();
}

export async function wholeFiles(): Promise<void> {
  await using loader = new SafeTensorsFileLoader({ framework });
  await loader.addFilenames({ 0: ['a.safetensors'] });
  await using buffer = await loader.copyFilesToDevice({ dtype: 'BF16' });
  same<Awaited<ReturnType<typeof buffer.getTensor>>, MyTensor>(true);
  // @ts-expect-error there is no such dtype
  await loader.copyFilesToDevice({ dtype: 'float32' });
  // @ts-expect-error nothing can be converted to it
  await loader.copyFilesToDevice({ dtype: 'I32' });
  // @ts-expect-error nor by getTensor()
  await buffer.getTensor('w', { dtype: 'F4' });
  const target: ConvertibleDType = 'F8_E4M3';
  await buffer.getTensor('w', { dtype: target });
  // @ts-expect-error a tensor has one name
  await buffer.getTensor(['a', 'b']);
  const threeFs: SafeTensorsFileLoader = new ThreeFSLoader({ mountPoint: '/mnt/3fs' });
  threeFs.reset();
}

export async function shortest(): Promise<void> {
  const tensors = await loadFile('m.safetensors', { dtype: 'F16' });
  same<typeof tensors, Record<string, DeviceTensor>>(true);
  const adopted = await loadFile(['a.safetensors', 'b.safetensors'], { framework });
  same<typeof adopted, Record<string, MyTensor>>(true);
  for await (const [name, tensor] of new ParallelLoader({ files: 'm.safetensors' })) {
    same<typeof name, string>(true);
    same<typeof tensor, DeviceTensor>(true);
  }
  for await (const [, tensor] of new SafeTensorsFileLoader({ framework })) same<typeof tensor, MyTensor>(true);
}

export async function lazily(): Promise<void> {
  await using files = await fastsafeOpen('m.safetensors', { framework });
  same<Awaited<ReturnType<typeof files.getTensor>>, MyTensor>(true);
  same<Awaited<ReturnType<typeof files.getTensors>>, Map<string, MyTensor>>(true);
  const ranges: SliceRange[] = [1, { start: -2, step: 2 }];
  await files.getSlice('w', ...ranges);
  // @ts-expect-error a range is an object
  await files.getSlice('w', '1:2');
  // @ts-expect-error there is no end
  await files.getSlice('w', { end: 2 });
}

export async function headers(): Promise<void> {
  const batch = await readHeadersBatch(['a.safetensors', new URL('file:///b.safetensors')], { threads: 8 });
  for (const [path, header] of batch) void [path.length, header.dataStart, header.get('w')?.shape];
}

export function configured(): void {
  const loader = new AutoLoader({ files: 'm', copier: 'mine', copierOptions: { bucket: 'b' } });
  void [loader.config.loader, loader.iterateWeights()];
  // @ts-expect-error it is what was read
  loader.config.loader = 'base';
}

export function options(signal: AbortSignal): void {
  const all: LoaderOptions = {
    device: 'cuda:1',
    copier: 'one of my own',
    odirect: 'auto',
    fallback: false,
    signal,
    onProgress: (progress: Progress) => void (progress.loaded / progress.total),
    filter: (name, frame) => name.startsWith('model.') && frame.shape.length > 1,
  };
  const more: ParallelOptions = { ...all, files: 'm', order: 'ready', queueSize: -1 };
  // @ts-expect-error a misspelled option
  const misspelled: LoaderOptions = { devise: 'cpu' };
  // @ts-expect-error only loaders with files have an order
  const order: LoaderOptions = { order: 'file' };
  // @ts-expect-error there is no such order
  const wrong: ParallelOptions = { files: 'm', order: 'random' };
  // @ts-expect-error an answer is due at once
  const slow: LoaderOptions = { filter: async () => true };
  void [more, misspelled, order, wrong, slow];
}

export function errors(error: unknown): ErrorCode | undefined {
  if (error instanceof InvalidArgumentError) {
    const typeError: TypeError = error;
    void typeError;
    return error.code;
  }
  if (!(error instanceof FastSafetensorsError)) return undefined;
  same<typeof error.path, string | undefined>(true);
  same<typeof error.offset, number | undefined>(true);
  const codes: readonly ErrorCode[] = ERROR_CODES;
  same<(typeof ERROR_CODES)[number], ErrorCode>(true);
  if (error.code === 'ADDON_MISSING') return codes[0];
  // @ts-expect-error codes are a closed list
  if (error.code === 'SHORTREAD') return undefined;
  // @ts-expect-error what was thrown stays as it is
  error.path = 'other';
  return error.code;
}

export async function headersAndFiles(): Promise<void> {
  const header = await SafeTensorsMetadata.fromFile('m.safetensors', { allowTrailingBytes: true });
  const shape: readonly number[] | undefined = header.get('w')?.shape;
  same<typeof header.metadata, ReadonlyMap<string, string>>(true);
  for (const frame of header) same<typeof frame.dtype, DTypeName>(true);
  await saveFile([{ name: 'w', dtype: 'F32', shape: [2], data: new Uint8Array(8) }], 'out.safetensors');
  await saveFile({ w: { shape: [2], data: Float32Array.of(1, 2) } }, 'out.safetensors');
  const tensors: readonly DeviceTensor[] = [];
  await saveFile(tensors, 'out.safetensors');
  await saveFile(new Map(tensors.map((tensor) => [tensor.name, tensor])), 'out.safetensors');
  const saved: SaveTensor[] = [...tensors, { name: 'x', shape: [1], data: Int8Array.of(1) }];
  await saveFile(saved, 'out.safetensors');
  // @ts-expect-error a tensor to save has a shape
  await saveFile([{ name: 'w', dtype: 'F32', data: new Uint8Array(8) }], 'out.safetensors');
  const bytes: number = nativeMetrics().deviceBytes;
  same<ReturnType<typeof loadConfig>, Record<string, unknown>>(true);
  void [shape, bytes];
}
