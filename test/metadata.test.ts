import { SafeTensorsMetadata, TensorFrame } from '../src/safetensors/metadata.js';
import { nativeHeader } from './support/native-header.js';

const header = nativeHeader(
  [
    { name: 'a', dtype: 'F32', shape: [2, 3] },
    { name: '重み😀\0', dtype: 'BF16', shape: [] },
    { name: '', dtype: 'I64', shape: [0, 7] },
    { name: '__proto__', dtype: 'F4', shape: [2] },
    { name: 'constructor', dtype: 'U8', shape: [1] },
  ],
  ['format', 'pt', '__proto__', 'x'],
);

describe('SafeTensorsMetadata', () => {
  const metadata = new SafeTensorsMetadata(header, 'dir/m.safetensors');

  test('tells what the header says', () => {
    expect(metadata).toMatchObject({
      path: 'dir/m.safetensors',
      headerLength: 64,
      sizeBytes: 8 + 64 + 24 + 2 + 1 + 1,
      dataStart: 72,
      tensorCount: 5,
      trailingBytes: 0,
    });
    expect([...metadata.metadata]).toEqual([
      ['format', 'pt'],
      ['__proto__', 'x'],
    ]);
  });

  test('lists names in the order of offsets', () => {
    expect(metadata.keys()).toEqual(['a', '重み😀\0', '', '__proto__', 'constructor']);
  });

  test('finds each tensor by its whole name and no other', () => {
    expect(metadata.get('a')).toBeInstanceOf(TensorFrame);
    expect(metadata.get('a')).toMatchObject({
      name: 'a',
      dtype: 'F32',
      shape: [2, 3],
      dataOffsets: [0, 24],
      byteLength: 24,
    });
    expect(metadata.get('重み😀\0')).toMatchObject({ dtype: 'BF16', shape: [], dataOffsets: [24, 26], byteLength: 2 });
    expect(metadata.get('')).toMatchObject({ dtype: 'I64', shape: [0, 7], dataOffsets: [26, 26], byteLength: 0 });
    expect(metadata.get('__proto__')).toMatchObject({ dtype: 'F4', dataOffsets: [26, 27] });
    for (const name of ['toString', 'hasOwnProperty', 'b', 'aa', '重み😀']) {
      expect(metadata.has(name)).toBe(false);
      expect(metadata.get(name)).toBeUndefined();
    }
  });

  test('iterates frames in the order of offsets', () => {
    expect([...metadata].map((frame) => frame.name)).toEqual(metadata.keys());
  });

  test('touches no prototype', () => {
    expect(({} as Record<string, unknown>).x).toBeUndefined();
    expect(Object.getPrototypeOf(metadata.metadata)).toBe(Map.prototype);
  });

  test('a caller cannot change a frame', () => {
    const frame = metadata.get('a')!;
    expect(() => (frame.shape as number[]).push(1)).toThrow(TypeError);
    expect(() => {
      (frame.dataOffsets as unknown as number[])[0] = 5;
    }).toThrow(TypeError);
  });

  test('a table of many names is made in turns of the event loop', async () => {
    const many = nativeHeader(
      Array.from({ length: 100_000 }, (_, i) => ({ name: `t${i}`, dtype: 'U8' as const, shape: [1] })),
    );
    let turns = 0;
    const timer = setInterval(() => {}, 0);
    const count = () => {
      ++turns;
      immediate = setImmediate(count);
    };
    let immediate = setImmediate(count);
    const metadata = await SafeTensorsMetadata.fromNative(many, 'm');
    clearImmediate(immediate);
    clearInterval(timer);
    expect(turns).toBeGreaterThanOrEqual(2);
    expect(metadata.get('t99999')!.dataOffsets).toEqual([99_999, 100_000]);
    expect(metadata.get('t0')!.dataOffsets).toEqual([0, 1]);
    expect(metadata.has('t100000')).toBe(false);
  });

  test.each([
    ['an empty path', () => SafeTensorsMetadata.fromFile('')],
    ['a path with a NUL', () => SafeTensorsMetadata.fromFile('a\0b')],
    ['a path that is no string', () => SafeTensorsMetadata.fromFile(5 as never)],
    ['a buffer that is none', () => SafeTensorsMetadata.fromBuffer('abc' as never)],
    ['a view of another width', () => SafeTensorsMetadata.fromBuffer(new Uint16Array(8) as never)],
    ['a misspelled option', () => SafeTensorsMetadata.fromFile('x', { allowTrailingByte: true } as never)],
    ['an option of another type', () => SafeTensorsMetadata.fromFile('x', { allowTrailingBytes: 1 } as never)],
    ['options that are no object', () => SafeTensorsMetadata.fromFile('x', null as never)],
  ])('%s rejects with INVALID_ARGUMENT and never throws at once', async (_, call) => {
    await expect(call()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  test('a misspelled option is named beside the right one', async () => {
    await expect(SafeTensorsMetadata.fromFile('x', { allowTrailingByte: true } as never)).rejects.toThrow(
      /"allowTrailingByte".*"allowTrailingBytes"/,
    );
  });
});
