import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { native, packageFolder } from '../src/native/addon.js';
import type { NativePlan } from '../src/native/core.js';
import { declaredFunctions } from './support/addon-interface.js';
import { expectNothingHeld } from './support/metrics.js';

// The addon checks every handle that it is given: a wrong one is an error that says what was expected, never a crash.

const EMPTY_PLAN: NativePlan = {
  paths: [],
  identities: new BigUint64Array(0),
  allocationSizes: new Float64Array(0),
  allocationBatches: new Uint32Array(0),
  itemFiles: new Uint32Array(0),
  itemAllocations: new Uint32Array(0),
  itemOffsets: new Float64Array(0),
  itemLengths: new Float64Array(0),
  itemDestinations: new Float64Array(0),
};

// biome-ignore lint/suspicious/noExplicitAny: calls that the types refuse.
const addon = native() as any;
const handles = new Map<string, unknown>();

beforeAll(async () => {
  const device = await native().openDevice('cpu', false, true);
  const engine = native().createEngine([device], { kind: 'file' }, {});
  handles.set('NativeDevice', device);
  handles.set('NativeEngine', engine);
  handles.set('NativeAllocation', await native().allocate(device, 64));
  handles.set('NativeLoad', await native().startTransfer(engine, EMPTY_PLAN, {}));
  handles.set('NativeHeaderFdCache', native().newHeaderFdCache());
  handles.set('NativeProgress', native().newProgress());
  handles.set('NativeOrtControl', native().ortNewControl());
});

afterAll(async () => {
  addon.release(handles.get('NativeAllocation'));
  await addon.closeEngine(handles.get('NativeEngine'));
  await expectNothingHeld();
});

/** An accepted argument. Handles that need ONNX Runtime have none; they come first among the parameters. */
function fitting(type: string): unknown {
  if (handles.has(type)) return handles.get(type);
  if (type === 'NativePlan') return EMPTY_PLAN;
  if (type === 'NativeFileIdentity') return { dev: 0n, ino: 0n, size: 0n, mtimeNs: 0n };
  if (/Array$/.test(type)) return new (globalThis as never as Record<string, typeof Float64Array>)[type]!(8);
  return (
    { string: 'cpu', number: 0, boolean: false }[type] ??
    (type.startsWith('readonly') ? [] : { kind: 'file', model: '' })
  );
}

const CASES = declaredFunctions().flatMap(({ name, parameters }) =>
  parameters.flatMap(({ type, name: parameter }, at) =>
    type.startsWith('Native') && !['NativePlan', 'NativeFileIdentity'].includes(type)
      ? [{ name, parameter, at, type, parameters }]
      : [],
  ),
);

test('many functions take a handle', () => expect(CASES.length).toBeGreaterThan(30));

test.each(CASES)(
  '$name refuses what is no handle of its $parameter',
  ({ name, parameter: handle, at, type, parameters }) => {
    const other = type === 'NativeDevice' ? 'NativeEngine' : 'NativeDevice';
    const optional = name === 'readHeader' || (name === 'readHeaders' && handle === 'fdCache');
    for (const wrong of [handles.get(other), {}, 1, 'x', ...(optional ? [] : [undefined, null])]) {
      const given = parameters.map((parameter, i) => (i === at ? wrong : fitting(parameter.type)));
      expect(() => addon[name](...given)).toThrow(
        expect.objectContaining({
          code: 'INVALID_ARGUMENT',
          message: expect.stringMatching(/^expected an? .*, found /),
        }),
      );
    }
  },
);

test('a message says what was expected and what was found', () => {
  const device = handles.get('NativeDevice');
  expect(() => addon.stagingBytes(undefined, false)).toThrow(
    expect.objectContaining({ message: 'expected an engine of this addon, found undefined' }),
  );
  expect(() => addon.stagingBytes(device, false)).toThrow(
    expect.objectContaining({ message: 'expected an engine of this addon, found another native value' }),
  );
});

test('handles inside of objects are checked, too', () => {
  const engine = handles.get('NativeEngine');
  for (const wrong of [engine, {}, 1]) {
    const refused = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    expect(() => addon.startTransfer(engine, { ...EMPTY_PLAN, memory: [wrong] }, {})).toThrow(refused);
    expect(() => addon.ortDescribe({ type: 1, dims: [1], memory: wrong, offset: 0, byteLength: 4 })).toThrow(refused);
  }
});

test('an allocation that was released is CLOSED for every further use, and may be released again', async () => {
  const memory = await native().allocate(handles.get('NativeDevice') as never, 64);
  native().release(memory);
  native().release(memory);
  expect(() => native().pointerOf(memory)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  expect(() => native().readAllocation(memory, 0, 1)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
});

test('a call that was refused does not keep the process alive', () => {
  const script = `
    const addon = require(process.argv[1]);
    for (const name of ['closeEngine', 'closeHeaderFdCache', 'ortCloseSession', 'waitTransfer', 'ortReadValue'])
      try { addon[name]({}) } catch (error) { console.log(error.code) }`;
  const built = process.env.FASTSAFETENSORS_NATIVE || join(packageFolder(), 'build/cmake/Release/fastsafetensors.node');
  const output = execFileSync(process.execPath, ['-e', script, built], { encoding: 'utf8', timeout: 30_000 });
  expect(output).toBe('INVALID_ARGUMENT\n'.repeat(5));
});
