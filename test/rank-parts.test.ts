import { open, rm } from 'node:fs/promises';
import {
  type DeviceTensor,
  expertParallelFilter,
  type FilesBufferOnDevice,
  type LoaderOptions,
  ownedExpertRange,
  type ProcessGroup,
  registerCopier,
  SafeTensorsFileLoader,
  type ShardRules,
} from 'fastsafetensors-node';
import { mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './support/metrics.js';
import { BITS, type Entry, entry, newFolder, writeModel } from './support/model-files.js';
import { blockOf, partOf } from './support/parts.js';
import { refused } from './support/refused.js';

// What each rank of a group gets, and what it reads for that: the rows of fastsafetensors on process groups. There is
// no collective: each rank reads its own bytes from the files.

const A = [
  entry('q', 'BF16', [8, 96]),
  entry('k', 'BF16', [6, 96]),
  entry('cube', 'F32', [5, 7, 3]),
  entry('scalar', 'I64', []),
  entry('none', 'F32', [4, 0]),
];
const B = [
  entry('wide', 'U8', [3, 40_000]),
  entry('four', 'F4', [8, 6]),
  entry('six', 'F6_E2M3', [4, 8]),
  entry('odd', 'F4', [4, 3]),
  entry('vector', 'F16', [10]),
  entry('empty', 'F32', [0, 6, 3]),
];
const ALL = [...A, ...B];
const of = (name: string): Entry => ALL.find((each) => each.name === name)!;

registerCopier('ranks-mock', mockCopier());
const reader = {
  async readChunked(
    path: string,
    destination: { write(at: number, bytes: Uint8Array): Promise<void> },
    offset: number,
    length: number,
  ) {
    await using file = await open(path);
    const bytes = new Uint8Array(length);
    const { bytesRead } = await file.read(bytes, 0, length, offset);
    await destination.write(0, bytes);
    return bytesRead;
  },
};

const WAYS: Record<string, LoaderOptions> = {
  'the host': {},
  'the host past the page cache': { odirect: true },
  'the host through slots': { staging: 'always', bounceBufferSize: 4096 },
  'the host, mapped': { mmap: true },
  'a device': { device: 'cuda:0' },
  'a device past the page cache': { device: 'cuda:0', odirect: true, bounceBufferSize: 8192 },
  'a device from the page cache': { device: 'cuda:0', staging: 'mapped', bounceBufferSize: 8192 },
  'a copier of the user': { copier: 'ranks-mock' },
  'a copier of the user, slowly': { copier: 'ranks-mock', maxBytesPerSecond: 1e8 },
  'a reader of the user': { copier: '3fs', reader },
};

let folder: string;
let paths: string[];
beforeAll(async () => {
  folder = await newFolder();
  paths = [await writeModel(folder, A, 'a.safetensors'), await writeModel(folder, B, 'b.safetensors')];
});
afterAll(() => rm(folder, { recursive: true }));
beforeEach(() => useFakeDevices({ copyDelayUs: 50 }));
afterEach(async () => {
  await expectNothingHeld();
  useFakeDevices(null);
});

async function onRank<T>(
  pg: ProcessGroup,
  options: LoaderOptions,
  use: (buffer: FilesBufferOnDevice, loader: SafeTensorsFileLoader) => Promise<T>,
): Promise<T> {
  await using loader = new SafeTensorsFileLoader({ pg, ...options });
  await loader.addFilenames({ 0: [paths[0]!], [pg.size - 1]: [paths[1]!] });
  await using buffer = await loader.copyFilesToDevice();
  return await use(buffer, loader);
}

async function expectPart(tensor: DeviceTensor, part: { shape: number[]; bytes: Buffer }): Promise<void> {
  expect(tensor.shape).toEqual(part.shape);
  expect(Buffer.from(await tensor.toHost()).toString('hex')).toBe(part.bytes.toString('hex'));
  if (part.bytes.length > 0) expect(tensor.pointer % BigInt(Math.max(1, BITS[tensor.dtype] / 8))).toBe(0n);
  tensor.dispose();
}

describe.each(Object.entries(WAYS))('on %s', (_, options) => {
  test.each([2, 3, 4, 64])(
    'getSharded(name, dim): of %d ranks each has its block of ceil(size / ranks), -1 gives all',
    async (size) => {
      for (const rank of size === 64 ? [0, 1, 5, 63] : Array.from({ length: size }, (_, i) => i)) {
        await onRank({ rank, size }, options, async (buffer) => {
          for (const given of ALL) {
            await expectPart(await buffer.getSharded(given.name, -1), {
              shape: given.shape,
              bytes: Buffer.from(given.bytes),
            });
            for (const [dim, length] of given.shape.entries()) {
              const part = partOf(given, dim, blockOf(length, rank, size));
              if (part) await expectPart(await buffer.getSharded(given.name, dim), part);
              else await refused(() => buffer.getSharded(given.name, dim));
            }
          }
        });
      }
    },
  );

  test('shardedPlan(rules) gives all parts of this rank in the order of files, as one load', async () => {
    for (const rank of [0, 1, 2]) {
      await onRank({ rank, size: 3 }, options, async (buffer, loader) => {
        const rules: ShardRules = { q: 0, cube: 1, wide: 1, '*': -1 };
        const names: string[] = [];
        let bytes = 0;
        for await (const [name, tensor] of buffer.shardedPlan(rules)) {
          names.push(name);
          const given = of(name);
          const dim = { q: 0, cube: 1, wide: 1 }[name];
          const whole = { shape: given.shape, bytes: Buffer.from(given.bytes) };
          const part = dim === undefined ? whole : partOf(given, dim, blockOf(given.shape[dim]!, rank, 3))!;
          bytes += part.bytes.length;
          await expectPart(tensor, part);
        }
        expect(names).toEqual(ALL.map(({ name }) => name));
        expect(loader.report).toMatchObject({ files: 2, tensors: ALL.length, bytes });
        const { wantedBytes, mappedBytes, readBytes } = loader.report;
        expect(wantedBytes + mappedBytes).toBe(bytes);
        expect(readBytes).toBeGreaterThanOrEqual(wantedBytes);
      });
    }
  });
});

test('copyFilesToDevice() reads nothing, nor does pushTensor(name, dstRank) on other ranks', async () => {
  await onRank({ rank: 1, size: 2 }, {}, async (buffer, loader) => {
    expect(await buffer.pushTensor('q', 0)).toBeNull();
    expect(loader.report).toMatchObject({ bytes: 0, readBytes: 0, tensors: 0 });
    await expectPart((await buffer.pushTensor('q', 1))!, { shape: [8, 96], bytes: Buffer.from(of('q').bytes) });
    expect(loader.report).toMatchObject({ bytes: of('q').bytes.length, readBytes: of('q').bytes.length });
    for (const rank of [2, -1, 0.5]) await refused(() => buffer.pushTensor('q', rank));
    await expect(buffer.pushTensor('absent', 0)).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
  });
});

test('getTensor(name) gives every rank the tensor, whichever has its file', async () => {
  for (const rank of [0, 1]) {
    await onRank({ rank, size: 2 }, {}, async (buffer) => {
      expect(buffer.keys()).toEqual(ALL.map(({ name }) => name));
      expect(buffer.getShape('q')).toEqual([8, 96]);
      expect([buffer.getFilename('q'), buffer.getFilename('vector'), buffer.getFilename('absent')]).toEqual([
        ...paths,
        '',
      ]);
      for (const name of ['q', 'vector']) {
        await expectPart(await buffer.getTensor(name), { shape: of(name).shape, bytes: Buffer.from(of(name).bytes) });
      }
      const wide = await buffer.getTensor('vector', { dtype: 'F32' });
      expect(wide.dtype).toBe('F32');
      wide.dispose();
    });
  }
});

test('getMultiCols(names, dim) puts the parts of this rank together', async () => {
  for (const rank of [0, 1, 2]) {
    await onRank({ rank, size: 3 }, {}, async (buffer, loader) => {
      const [q, k] = [of('q'), of('k')].map((given) => partOf(given, 0, blockOf(given.shape[0]!, rank, 3))!);
      for (const dim of [0, -2]) {
        await expectPart(await buffer.getMultiCols(['q', 'k', 'q'], dim), {
          shape: [2 * q!.shape[0]! + k!.shape[0]!, 96],
          bytes: Buffer.concat([q!.bytes, k!.bytes, q!.bytes]),
        });
      }
      expect(loader.report.readBytes).toBe(q!.bytes.length + k!.bytes.length);
      await refused(() => buffer.getMultiCols(['q', 'cube'], 0));
    });
  }
});

test('asDict({ name: dim }) is one load of all parts, in the order of its argument', async () => {
  await onRank({ rank: 1, size: 2 }, {}, async (buffer, loader) => {
    const parts = await buffer.asDict({ wide: 1, q: 0, scalar: -1, none: 0 });
    expect([...parts.keys()]).toEqual(['wide', 'q', 'scalar', 'none']);
    expect(loader.report).toMatchObject({ tensors: 4, bytes: 60_000 + 768 + 8, readBytes: 60_000 + 768 + 8 });
    await expectPart(parts.get('wide')!, partOf(of('wide'), 1, [20_000, 40_000])!);
    await expectPart(parts.get('q')!, partOf(of('q'), 0, [4, 8])!);
    await expectPart(parts.get('scalar')!, { shape: [], bytes: Buffer.from(of('scalar').bytes) });
    await expectPart(parts.get('none')!, { shape: [2, 0], bytes: Buffer.alloc(0) });
    await refused(() => buffer.asDict({ q: 2 }));
    await refused(() => buffer.asDict({ odd: 1 }));
    await expect(buffer.asDict({ absent: 0 })).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR' });
    const twice = await buffer.asDict([
      ['q', 0],
      ['q', 1],
    ]);
    expect([...twice.values()].map(({ shape }) => shape)).toEqual([[4, 96]]);
    for (const tensor of twice.values()) tensor.dispose();
  });
});

test('addFilenames({ rank: files }) takes files round-robin over ranks; every rank has all tensors', async () => {
  const own = await newFolder();
  const files = await Promise.all(
    ['0a', '0b', '0c', '1a', '2a', '2b'].map((name) => writeModel(own, [entry(name, 'U8', [2])], name)),
  );
  for (const rank of [0, 1, 2, 3]) {
    await using loader = new SafeTensorsFileLoader({ pg: { rank, size: 4 } });
    await loader.addFilenames({ 2: [files[4]!, files[5]!], 0: files.slice(0, 3), 1: files[3]!, 3: [] });
    expect(loader.keys()).toEqual(['0a', '1a', '2a', '0b', '2b', '0c']);
    await refused(() => loader.addFilenames({ 4: files[0]! }));
  }
  await rm(own, { recursive: true });
});

test('a key in two files of two ranks is DUPLICATE_TENSOR', async () => {
  await using loader = new SafeTensorsFileLoader({ pg: { rank: 0, size: 2 } });
  await expect(loader.addFilenames({ 0: paths[0]!, 1: paths[0]! })).rejects.toMatchObject({ code: 'DUPLICATE_TENSOR' });
  await expect(loader.copyFilesToDevice()).rejects.toMatchObject({ code: 'NO_FILES' });
});

test('a group without any files has no tensors', async () => {
  await using loader = new SafeTensorsFileLoader({ pg: { rank: 1, size: 2 } });
  await loader.addFilenames({ 0: [], 1: [] });
  await using buffer = await loader.copyFilesToDevice();
  expect(buffer.keys()).toEqual([]);
  for await (const _ of buffer.shardedPlan({ '*': 0 })) throw new Error('there is nothing to give');
  expect((await buffer.asDict({})).size).toBe(0);
});

test('rules: names before patterns, the first pattern that fits, ranges, functions; others are left out', async () => {
  await onRank({ rank: 0, size: 2 }, {}, async (buffer, loader) => {
    const given: [string, number[]][] = [];
    const rules: ShardRules = new Map<string, never>([
      ['q', { dim: 0, start: -3 }],
      ['*e', { dim: 1, start: 2, stop: 100_000 }],
      ['c*b*', 0],
      ['k', (frame: { shape: readonly number[] }) => (frame.shape[0] === 6 ? 1 : -1)],
      ['scal*', () => null],
    ] as never);
    for await (const [name, tensor] of buffer.shardedPlan(rules)) {
      given.push([name, [...tensor.shape]]);
      tensor.dispose();
    }
    expect(given).toEqual([
      ['q', [3, 96]],
      ['k', [6, 48]],
      ['cube', [5, 5, 3]],
      ['none', [4, 0]],
      ['wide', [3, 39_998]],
    ]);
    expect(loader.report.bytes).toBe(3 * 192 + 6 * 96 + 5 * 5 * 12 + 3 * 39_998);
    for (const wrong of [
      { q: 2 },
      { q: -2 },
      { q: '0' },
      { q: { dim: 0, step: 2 } },
      { q: { dim: 0.5 } },
      { q: () => undefined },
      { q: async () => 0 },
      { '*': 1 },
      7,
      null,
      { q: { dim: 0, start: 'x' } },
    ]) {
      await refused(async () => {
        for await (const [, tensor] of buffer.shardedPlan(wrong as never)) tensor.dispose();
      });
    }
    const absent = buffer.shardedPlan({ absent: 0 });
    await expect(absent.next()).rejects.toMatchObject({ code: 'UNKNOWN_TENSOR', tensor: 'absent' });
    for await (const _ of buffer.shardedPlan({ 'none-like-this*': 0 })) throw new Error('it fits no tensor');
  });
});

test('expert-parallel: a filter, or a rule over the dimension of experts, gives a rank its own experts', async () => {
  const own = await newFolder();
  const experts = Array.from({ length: 5 }, (_, i) => entry(`mlp.experts.${i}.w`, 'F32', [4, 4]));
  const fused = entry('fused.w', 'F32', [5, 16]);
  const path = await writeModel(own, [...experts, fused]);
  let together = 0;
  for (const rank of [0, 1, 2]) {
    const pg = { rank, size: 3 };
    const [begin, end] = ownedExpertRange(5, 3, rank);
    await using loader = new SafeTensorsFileLoader({ pg, filter: expertParallelFilter({ numExperts: 5, ...pg }) });
    await loader.addFilenames(path);
    await using buffer = await loader.copyFilesToDevice();
    const rules = { 'fused.*': { dim: 0, start: begin, stop: end }, '*': -1 };
    const names: string[] = [];
    for await (const [name, tensor] of buffer.shardedPlan(rules)) {
      names.push(name);
      const part =
        name === 'fused.w'
          ? partOf(fused, 0, [begin, end])!
          : { shape: [4, 4], bytes: Buffer.from(experts.find((each) => each.name === name)!.bytes) };
      await expectPart(tensor, part);
    }
    expect(names).toEqual([...experts.slice(begin, end).map(({ name }) => name), 'fused.w']);
    together += loader.report.readBytes;
  }
  expect(together).toBe(2 * 5 * 64);
  await rm(own, { recursive: true });
});

test('dtype converts the parts while they are read', async () => {
  const own = await newFolder();
  const given = entry('w', 'BF16', [6, 10]);
  for (let at = 1; at < given.bytes.length; at += 2) given.bytes[at]! &= 0xbf; // no NaNs: they become quiet
  const path = await writeModel(own, [given]);
  for (const options of [{}, { odirect: true }, { device: 'cuda:0' }] as LoaderOptions[]) {
    for (const [dim, rank] of [
      [0, 1],
      [1, 0],
      [1, 1],
    ] as const) {
      await using loader = new SafeTensorsFileLoader({ pg: { rank, size: 2 }, dtype: 'F32', ...options });
      await loader.addFilenames(path);
      await using buffer = await loader.copyFilesToDevice();
      using tensor = await buffer.getSharded('w', dim);
      const { bytes, shape } = partOf(given, dim, blockOf(given.shape[dim]!, rank, 2))!;
      const wide = Buffer.alloc(2 * bytes.length);
      for (let at = 0; at < bytes.length; at += 2) bytes.copy(wide, 2 * at + 2, at, at + 2);
      expect({ shape: tensor.shape, dtype: tensor.dtype }).toEqual({ shape, dtype: 'F32' });
      expect(Buffer.from(await tensor.toHost()).toString('hex')).toBe(wide.toString('hex'));
    }
  }
  await rm(own, { recursive: true });
});

test('of a group of one, shardedPlan gives what was loaded, and copies of ranges', async () => {
  await using loader = new SafeTensorsFileLoader();
  await loader.addFilenames(paths);
  await using buffer = await loader.copyFilesToDevice();
  const rules: ShardRules = {
    q: 0,
    cube: { dim: 1, start: 1, stop: 3 },
    wide: { dim: 0, start: 1 },
    none: { dim: 0, stop: 1 },
  };
  const parts = new Map<string, DeviceTensor>();
  for await (const [name, tensor] of buffer.shardedPlan(rules)) parts.set(name, tensor);
  await expectPart(parts.get('q')!, { shape: [8, 96], bytes: Buffer.from(of('q').bytes) });
  await expectPart(parts.get('cube')!, partOf(of('cube'), 1, [1, 3])!);
  await expectPart(parts.get('wide')!, partOf(of('wide'), 0, [1, 3])!);
  await expectPart(parts.get('none')!, { shape: [1, 0], bytes: Buffer.alloc(0) });
});

test('a framework gets the parts; what it refuses ends the call, and nothing is left', async () => {
  let adopted = 0;
  const framework = {
    name: 'test',
    adopt: (tensor: DeviceTensor) => {
      if (++adopted > 2) throw new Error('no more');
      return { dispose: () => tensor.dispose() };
    },
  };
  await using loader = new SafeTensorsFileLoader({ pg: { rank: 0, size: 2 }, framework });
  await loader.addFilenames(paths);
  await using buffer = await loader.copyFilesToDevice();
  await expect(buffer.asDict({ q: 0, k: 0, cube: 0, wide: 1 })).rejects.toThrow('no more');
});

test('closing the buffer or the loader, and an aborted signal, end what is read; nothing is left', async () => {
  const pg = { rank: 0, size: 2 };
  const slow = { copier: 'ranks-mock', maxBytesPerSecond: 20_000 };
  for (const how of ['buffer', 'loader', 'signal', 'break'] as const) {
    const end = new AbortController();
    await using loader = new SafeTensorsFileLoader({ pg, ...slow });
    await loader.addFilenames(paths);
    await using buffer = await loader.copyFilesToDevice({ signal: end.signal });
    const iterator = buffer.shardedPlan({ '*': -1, wide: 1 });
    if (how === 'break') {
      (await iterator.next()).value?.[1].dispose();
      await iterator.return();
      continue;
    }
    const failed = (async () => {
      for await (const [, tensor] of iterator) tensor.dispose();
    })();
    failed.catch(() => {});
    setTimeout(
      () => (how === 'buffer' ? buffer.close() : how === 'loader' ? loader.close() : end.abort(new Error('enough'))),
      30,
    );
    await expect(failed).rejects.toMatchObject(how === 'signal' ? { message: 'enough' } : { code: 'CLOSED' });
    if (how === 'buffer') await expect(buffer.getTensor('q')).rejects.toMatchObject({ code: 'CLOSED' });
    if (how === 'loader') await expect(buffer.getTensor('q')).rejects.toMatchObject({ code: 'CLOSED' });
  }
});

test('onProgress counts the bytes of this rank', async () => {
  const seen: number[] = [];
  await using loader = new SafeTensorsFileLoader({
    pg: { rank: 0, size: 2 },
    onProgress: ({ status, total }) => void (status === 'progress_total' && seen.push(total)),
  });
  await loader.addFilenames(paths);
  await using buffer = await loader.copyFilesToDevice();
  for await (const [, tensor] of buffer.shardedPlan({ wide: 1 })) tensor.dispose();
  expect(new Set(seen)).toEqual(new Set([60_000]));
});
