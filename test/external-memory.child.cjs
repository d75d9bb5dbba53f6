// What V8 is told of the memory of tensors, and that it collects them for it. Run with --expose-gc.
const { constants, PerformanceObserver } = require('node:perf_hooks');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { native } = require('../dist/src/native/addon.js');
const helpers = require('./support/child-helpers.cjs');
const {
  assert,
  fakeReader,
  fastsafeOpen,
  main,
  mockCopier,
  nativeMetrics,
  nothingHeld,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  setImmediate,
  setTimeout,
  useFakeDevices,
} = helpers;

registerCopier('mock', mockCopier());
const MIB = 1024 * 1024;
const TENSORS = 4;
const BATCHES = 8;

/** A model of 4 tensors. */
function writeModel(mib) {
  return helpers.writeModel('a', TENSORS, (mib * MIB) / TENSORS / 4);
}

/** What V8 knows of when all that was dropped has been collected. */
async function collected() {
  for (let turn = 0; turn < 6; ++turn) {
    globalThis.gc();
    await setImmediate();
  }
  return native().externalMemory();
}

/**
 * Fails unless V8 knows of so many MiB more than before, at the latest when it hears of loads that have not ended; some
 * KiB are other parts' of the process.
 */
async function expectMore(before, mib, what) {
  let more;
  for (let tries = 0; tries < 100 && !(Math.abs(more - mib) < 0.5); ++tries) {
    if (tries > 0) await setTimeout(50);
    more = ((await collected()) - before) / MIB;
  }
  assert.ok(Math.abs(more - mib) < 0.5, `${what}: expected ${mib} MiB, found ${more}`);
}

async function counted(file, options) {
  const before = await collected();
  const held = new Map();
  const loader = new SafeTensorsFileLoader(options);
  await loader.addFilenames(file);
  held.set('buffers', await loader.copyFilesToDevice());
  await expectMore(before, 32, 'a buffer of which no tensor was asked for');

  for (let i = 0; i < TENSORS; ++i) held.set(i, await held.get('buffers').getTensor(`a.${i}`));
  await expectMore(before, 32, 'the tensors of a buffer');
  held.set('clone', await held.get(0).clone());
  await expectMore(before, 40, 'a copy');
  held.get('clone').dispose();
  await expectMore(before, 32, 'a copy that was disposed');

  const onHost = held.get(0).device.type === 'cpu';
  if (onHost) {
    for (let i = 0; i < 2; ++i) held.set(`array ${i}`, held.get(i).data);
    await expectMore(before, 32, 'typed arrays over tensors');
  }
  await held.get('buffers').close();
  for (let i = 0; i < TENSORS - 1; ++i) {
    held.get(i).dispose();
    held.get(i).dispose();
    held.delete(i);
  }
  await expectMore(before, 32, 'memory of which one tensor is left');
  held.delete(TENSORS - 1);
  if (onHost) {
    await expectMore(before, 32, 'memory of which typed arrays are left');
    held.delete('array 0');
    await expectMore(before, 32, 'memory of which a typed array is left');
  }
  held.clear();
  await expectMore(before, 0, 'what was dropped');

  const opened = await fastsafeOpen(file, options);
  held.set('tensor', await opened.getTensor('a.1'));
  held.set('slice', await opened.getSlice('a.2', { stop: MIB / 2 }));
  await expectMore(before, 10, 'a tensor that was read by itself, and a slice');
  await opened.close();

  const parallel = new ParallelLoader({ files: file, maxBatchBytes: 8 * MIB, ...options });
  const iterator = parallel.iterateWeights();
  held.set('first', (await iterator.next()).value[1]);
  // Of a mock only what it has begun to fill.
  if (options.copier !== 'mock') await expectMore(before, 10 + 16, 'a load that may be two batches ahead');
  await iterator.return();
  // What a mock reads at the moment it keeps until it is read.
  for (let i = 0; options.copier === 'mock' && i < 100 && (await collected()) - before > 20 * MIB; ++i)
    await setTimeout(20);
  await expectMore(before, 10 + 8, 'a load that was ended');
  await parallel.close();
  for (const tensor of held.values()) tensor.dispose();
  await expectMore(before, 0, 'what was disposed');
  await loader.close();
}

/** Mapped tensors count as twice their page tables, whether typed arrays are over them or not. */
async function countedMapped(file) {
  const before = await collected();
  const loader = new SafeTensorsFileLoader({ mmap: true });
  await loader.addFilenames(file);
  const buffers = await loader.copyFilesToDevice();
  const held = new Map();
  for (const name of buffers.keys()) held.set(name, await buffers.getTensor(name));
  assert.ok(nativeMetrics().mappedBytes >= 512 * MIB);
  await expectMore(before, 2, 'mapped tensors');
  for (const name of buffers.keys()) held.set(`${name} as an array`, held.get(name).data);
  await expectMore(before, 2, 'typed arrays over mapped tensors');
  for (const name of buffers.keys()) held.get(name).dispose();
  await buffers.close();
  await loader.close();
  await expectMore(before, 2, 'typed arrays that are left');
  held.clear();
  await expectMore(before, 0, 'what was dropped');
}

/** V8 takes each growth of what it counts by 64 MiB for a reason to collect. Garbage that it has found is no growth. */
async function collectedOnce(file) {
  const loader = new ParallelLoader({ files: file, mmap: true, maxBatchBytes: MIB });
  let arrays = [];
  for await (const [, tensor] of loader.iterateWeights()) {
    arrays.push(tensor.data);
    tensor.dispose();
  }
  assert.equal(arrays.length, 512);
  await loader.close();
  arrays = undefined;
  const begun = [];
  const observer = new PerformanceObserver((list) => begun.push(...list.getEntries()));
  observer.observe({ entryTypes: ['gc'] });
  globalThis.gc();
  await setTimeout(500);
  observer.disconnect();
  const { NODE_PERFORMANCE_GC_MAJOR: MAJOR, NODE_PERFORMANCE_GC_FLAGS_FORCED: FORCED } = constants;
  const majors = begun.filter(({ detail: { kind, flags } }) => kind === MAJOR && !(flags & FORCED)).length;
  assert.ok(begun.length > 0 && majors <= 2, `${majors} collections of the whole heap followed one`);
}

/** V8 would collect at once, beside the threads that read, and find nothing. */
async function heldBack(file) {
  const before = await collected();
  const loader = new ParallelLoader({ files: file, copier: 'slow' });
  const held = [];
  for await (const [, tensor] of loader.iterateWeights()) {
    held.push(tensor.data);
    tensor.dispose();
    if (held.length < TENSORS) {
      const more = native().externalMemory() - before;
      assert.ok(Math.abs(more) < MIB, `of a load that is under way, V8 knows of ${more} bytes`);
    }
  }
  await setTimeout(20);
  await expectMore(before, 128, 'a load that has ended');
  await loader.close();
  held.length = 0;
  await expectMore(before, 0, 'what was dropped');
}

/** Of a load in batches V8 hears of tensors that are kept, when it goes on to the next batch, and of nothing else. */
async function heldBackBatches(file, keeps) {
  const before = await collected();
  const loader = new ParallelLoader({ files: file, copier: 'slow', maxBatchBytes: 4 * MIB });
  const kept = [];
  let batches = 0;
  for await (const [, tensor] of loader.iterateWeights()) {
    if (keeps) kept.push(tensor);
    else tensor.dispose();
    // The first of a batch moved the window on; when the last batches are read there is nothing to go on to.
    if (++batches > BATCHES - 3) continue;
    const more = native().externalMemory() - before;
    const told = keeps ? 4 * MIB * (batches - 1) : 0;
    assert.ok(Math.abs(more - told) < MIB, `with ${batches} of ${BATCHES} batches out, V8 knows of ${more} bytes`);
  }
  assert.equal(batches, BATCHES);
  await loader.close();
  for (const tensor of kept) tensor.dispose();
  await expectMore(before, 0, 'what was disposed');
}

/** Of what was read and is about to be handed out V8 hears nothing for a second. */
async function heldBackUntilTaken(file) {
  const loader = new ParallelLoader({ files: file, mmap: false });
  const before = await collected();
  let begun;
  do {
    begun = performance.now();
    for await (const [, tensor] of loader.iterateWeights()) {
      while (nativeMetrics().inFlight > 0) await setTimeout(1); // until all is read
      for (let turn = 0; turn < 3; ++turn) await setImmediate();
      const more = native().externalMemory() - before;
      tensor.dispose();
      if (performance.now() - begun > 900) break; // a slow machine
      assert.ok(Math.abs(more) < MIB, `of tensors that are about to be handed out, V8 knows of ${more} bytes`);
    }
  } while (performance.now() - begun > 900);
  await loader.close();
}

const WAYS = {
  async parallel(file, options) {
    const loader = new ParallelLoader({ files: file, ...options });
    for await (const _ of loader.iterateWeights()) look();
    await loader.close();
  },
  async withoutClose(file, options) {
    for await (const _ of new ParallelLoader({ files: file, ...options }).iterateWeights()) look();
  },
  async buffers(file, options) {
    const loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(file);
    const buffers = await loader.copyFilesToDevice();
    for (const name of buffers.keys()) {
      await buffers.getTensor(name);
      look();
    }
    await loader.close();
  },
  async lazy(file, options) {
    const opened = await fastsafeOpen(file, options);
    for (const name of opened.keys()) {
      await opened.getTensor(name);
      look();
    }
    await opened.close();
  },
};

let peak = 0;
function look() {
  peak = Math.max(peak, nativeMetrics().hostBytes + nativeMetrics().deviceBytes);
}

if (!isMainThread) {
  counted(workerData.file, { mmap: false }).then(() => parentPort.postMessage('ok'));
} else {
  main({
    async counted() {
      useFakeDevices({});
      const file = writeModel(32);
      for (const options of [{ mmap: false }, { device: 'cuda:0' }, { copier: 'mock' }]) await counted(file, options);
      await nothingHeld();
    },

    async mapped() {
      await countedMapped(helpers.writeModel('a', TENSORS, (512 * MIB) / TENSORS / 4, 0, 8));
      await nothingHeld();
    },

    async collectedOnce() {
      await collectedOnce(helpers.writeModel('a', 512, MIB / 4, 0, 8));
      await nothingHeld();
    },

    async heldBack() {
      registerCopier('slow', fakeReader({ msPerIo: 40, chunk: 4 * MIB, inFlight: 2 }));
      await heldBack(writeModel(128));
      await nothingHeld();
    },

    async heldBackUntilTaken() {
      await heldBackUntilTaken(writeModel(128));
      await nothingHeld();
    },

    async heldBackBatches() {
      registerCopier('slow', fakeReader({ msPerIo: 300, chunk: 4 * MIB, inFlight: 1 }));
      const file = helpers.writeModel('a', BATCHES, MIB);
      for (const keeps of [false, true]) await heldBackBatches(file, keeps);
      await nothingHeld();
    },

    async inWorker() {
      const before = await collected();
      const worker = new Worker(__filename, { workerData: { file: writeModel(32) } });
      const messages = [];
      worker.on('message', (message) => messages.push(message));
      await new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
      assert.deepEqual(messages, ['ok']);
      await expectMore(before, 0, 'a worker that has ended');
      await nothingHeld();
    },

    // One that reads on must not keep V8 from hearing of others.
    async droppedBeside() {
      registerCopier('slow', fakeReader({ msPerIo: 400, chunk: MIB, inFlight: 2 }));
      const slow = new ParallelLoader({ files: helpers.writeModel('b', 1, (32 * MIB) / 4), copier: 'slow' });
      const closed = assert.rejects(slow.iterateWeights().next(), { code: 'CLOSED' });
      const file = writeModel(128);
      for (let round = 0; round < 10; ++round) await WAYS.buffers(file, { mmap: false });
      assert.ok(peak <= (3 * 128 + 32) * MIB, `${peak / MIB} MiB were held at a time, of tensors of 128 MiB`);
      await slow.close();
      await closed;
      await nothingHeld();
    },

    async dropped(way, device) {
      if (device !== 'cpu') useFakeDevices({});
      const live = 128 * MIB;
      const file = writeModel(128);
      for (let round = 0; round < 25; ++round) await WAYS[way](file, { device, mmap: false });
      assert.ok(peak <= 2 * live, `${peak / MIB} MiB were held at a time, of tensors of ${live / MIB} MiB`);
      await nothingHeld();
    },
  });
}
