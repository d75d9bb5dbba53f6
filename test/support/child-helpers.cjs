// What *.child.cjs share. They run in processes of their own, against the built package.
const assert = require('node:assert/strict');
const { mkdirSync, mkdtempSync, rmSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { setImmediate, setTimeout } = require('node:timers/promises');
const { isMainThread } = require('node:worker_threads');
const { native, settled } = require('../../dist/src/native/addon.js');
const { onTestDevice } = require('./test-device.cjs');
const { fst, testing } = onTestDevice(require('fastsafetensors-node'), require('fastsafetensors-node/testing'));

// The main thread's: a worker that is terminated hears of no exit, and would leave its folder behind.
const folder = isMainThread ? mkdtempSync(join(tmpdir(), 'fastsafetensors-child-')) : null;
// Loads that are in progress still make links in it: all is removed again where one comes while it is emptied. (With
// maxRetries, rmSync removes the emptied folder again, and not what has come.)
function removeFolder() {
  for (let tries = 1; ; ++tries) {
    try {
      return rmSync(folder, { recursive: true, force: true });
    } catch (error) {
      if (error.code !== 'ENOTEMPTY' || tries === 100) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
    }
  }
}
// KEEP_FOLDER: the test that started this removes it. A 3FS does not lose its links where a process begins to exit.
if (isMainThread && !process.env.KEEP_FOLDER) process.on('exit', removeFolder);

/** The built-in copier that a test is about, and the device of its loads (test/support/own-copier.ts). */
const { TEST_COPIER, TEST_DEVICE, TEST_STAGING } = process.env;
const staged = TEST_STAGING && { staging: TEST_STAGING, bounceBufferSize: 16384 };
const own = TEST_COPIER ? { copier: TEST_COPIER, device: TEST_DEVICE, ...staged } : undefined;
if (own?.copier === '3fs' && isMainThread) mkdirSync(join(folder, '3fs-virt', 'iovs'), { recursive: true });

/** A file of `count` F32 tensors of `elements`; all bytes of tensor i are `seed` + i. `alignment`: of its data. */
function writeModel(name, count, elements, seed = 0, alignment = 1) {
  const size = 4 * elements;
  const entries = Array.from(
    { length: count },
    (_, i) => `"${name}.${i}":{"dtype":"F32","shape":[${elements}],"data_offsets":[${i * size},${(i + 1) * size}]}`,
  );
  const json = `{${entries.join(',')}}`;
  const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / alignment) * alignment - 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const data = Array.from({ length: count }, (_, i) => Buffer.alloc(size, (seed + i) & 255));
  const path = join(folder, `${name}.safetensors`);
  writeFileSync(path, Buffer.concat([length, header, ...data]));
  return path;
}

/** Whether all of the bytes are `value`; in C++, as tests look at gigabytes. */
function filledWith(bytes, value) {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).equals(Buffer.alloc(bytes.byteLength, value));
}

/** Disposes a tensor of writeModel(), which must have the bytes that its name and `seed` say. */
async function checkTensor(name, tensor, seed = 0) {
  const bytes = await tensor.toHost();
  const right = filledWith(bytes, (seed + Number(name.split('.')[1])) & 255);
  assert.ok(bytes.length > 0 && right, `${name} has wrong bytes`);
  tensor.dispose();
}

/** A logger that drops all. */
const quiet = { debug() {}, info() {}, warn() {} };

/** Waits until the process holds nothing. */
async function nothingHeld(timeoutMs = 10_000) {
  for (const end = Date.now() + timeoutMs; ; await setTimeout(2)) {
    const metrics = fst.nativeMetrics();
    if (Object.values(metrics).every((value) => value === 0)) return;
    assert(Date.now() < end, JSON.stringify(metrics));
    globalThis.gc?.();
  }
}

/** Rings, and bytes of their buffers, that '3fs' keeps for the next loader. */
const idleThreeFs = () => native().idleThreeFs();
/** Gives that back. */
const dropIdleThreeFs = () => settled(native().dropIdleThreeFs());

/** A moment of a load: some microtasks, then some turns of the event loop, then milliseconds. */
async function moment(n) {
  if (n < 12) for (let i = 0; i < n; ++i) await null;
  else if (n < 30) for (let i = 0; i < n - 12; ++i) await setImmediate();
  else await setTimeout(n - 29);
}
const MOMENTS = 44;

/** Numbers in [0, 1) that follow from the seed (mulberry32). */
function generator(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * Ends the process in the middle of the work that `begin` begins: `us` microseconds after that, or after its callback.
 * By process.exit(7), or by an uncaught error.
 */
async function endAt(ending, after, us, begin) {
  const first = new Promise(begin);
  if (after === 'first') await first;
  const end = performance.now() + Number(us) / 1000;
  do await setImmediate();
  while (performance.now() < end);
  if (ending === 'exit') process.exit(7);
  process.nextTick(() => {
    throw new Error('uncaught on purpose');
  });
  await setTimeout(60_000);
}

/** How many tensors of writeModel() a loader gives; each must have the bytes that its name says. */
async function countRight(loader) {
  let tensors = 0;
  for await (const [name, tensor] of loader.iterateWeights()) {
    await checkTensor(name, tensor);
    ++tensors;
  }
  return tensors;
}

/** Runs a scenario by its name, from the command line, and says ok. */
function main(scenarios) {
  const [name, ...args] = process.argv.slice(2);
  Promise.resolve(scenarios[name](...args)).then(
    () => console.log('ok'),
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
}

module.exports = {
  ...fst,
  ...testing,
  ...(own ? { useFakeDevices() {} } : {}), // its device is an emulated one
  assert,
  checkTensor,
  countRight,
  dropIdleThreeFs,
  endAt,
  filledWith,
  folder,
  generator,
  idleThreeFs,
  main,
  moment,
  MOMENTS,
  nothingHeld,
  own,
  quiet,
  setImmediate,
  setTimeout,
  writeModel,
};
