// Drops loaders, buffers, tensors, typed arrays and iterators in random orders and lets the garbage collector find
// them. Run with --expose-gc.
const { readdirSync, readFileSync } = require('node:fs');
const {
  assert,
  fakeReader,
  fastsafeOpen,
  main,
  nothingHeld,
  ParallelLoader,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  mockCopier,
  setImmediate,
  useFakeDevices,
  writeModel,
} = require('./support/child-helpers.cjs');

registerCopier('slow', fakeReader({ msPerIo: 0.2, chunk: 4096, inFlight: 4, reorder: true }));
registerCopier('mock', mockCopier());
useFakeDevices({ copyDelayUs: 50 });
const file = writeModel('a', 6, 600);

let state = Number(process.argv[3] ?? 1);
function random(below) {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % below;
}

/** Makes a web of objects over one allocation; each is in `roots` and nowhere else. */
async function web(options) {
  const roots = new Map();
  const loader = new SafeTensorsFileLoader(options);
  await loader.addFilenames(file);
  const buffers = await loader.copyFilesToDevice();
  roots.set('loader', loader).set('buffers', buffers);
  for (const key of ['a.0', 'a.0', 'a.3']) {
    const tensor = await buffers.getTensor(key);
    roots.set(`tensor ${roots.size}`, tensor);
    roots.set(`clone ${roots.size}`, await tensor.clone());
    if (tensor.device.type === 'cpu') roots.set(`array ${roots.size}`, tensor.data);
  }
  const parallel = new ParallelLoader({ files: file, maxBatchBytes: 4000, ...options });
  const iterator = parallel.iterateWeights();
  const { value } = await iterator.next();
  roots.set('parallel', parallel).set('iterator', iterator).set('first', value[1]);
  if (value[1].device.type === 'cpu') roots.set('first array', value[1].data);
  const opened = await fastsafeOpen(file, options);
  const promise = opened.getTensor('a.5');
  promise.catch((error) => assert.equal(error.code, 'CLOSED'));
  roots.set('opened', opened).set('promise', promise);
  return roots;
}

/** Uses what is left: it must still be whole. */
async function use([name, object]) {
  if (name.includes('array')) {
    const want = name === 'first array' ? 0 : undefined;
    const bytes = Buffer.from(object.buffer, object.byteOffset, object.byteLength);
    assert.ok(bytes.every((byte) => byte === (want ?? bytes[0])));
  } else if (/tensor|clone|first/.test(name) && !object.disposed) {
    const want = Number(object.name.split('.')[1]);
    assert.ok((await object.toHost()).every((byte) => byte === want));
  }
}

main({
  async randomOrders(_, rounds) {
    const ways = [
      {},
      { copier: 'slow' },
      { copier: 'slow', device: 'cuda:0' },
      { staging: 'always' },
      { copier: 'mock' },
    ];
    const once = async (options) => {
      const roots = await web(options);
      while (roots.size > 0) {
        const names = [...roots.keys()];
        const name = names[random(names.length)];
        const object = roots.get(name);
        // Some are closed or disposed first, some are just dropped.
        if (random(3) === 0) await (object.dispose ?? object.close ?? object.return)?.call(object);
        roots.delete(name);
        if (random(6) === 0) globalThis.gc();
        if (random(4) === 0) await setImmediate();
        const left = [...roots];
        if (left.length > 0) await use(left[random(left.length)]);
      }
    };
    for (let round = 0; round < Number(rounds); ++round) await once(ways[round % ways.length]);
    await nothingHeld();
  },

  // Finalizers of this package run in any order with those of others, which may hold the last reference.
  async registries() {
    const seen = [];
    const registry = new FinalizationRegistry((name) => seen.push(name));
    const once = async () => {
      const roots = await web({});
      for (const [name, object] of roots) registry.register(object, name);
      await roots.get('promise');
    };
    for (let i = 0; i < 50; ++i) await once();
    await nothingHeld();
    for (let turn = 0; turn < 100 && seen.length < 500; ++turn) {
      globalThis.gc();
      await setImmediate();
    }
    assert.ok(seen.length >= 500, `${seen.length} were collected`);
  },

  /** Nobody closes the loader, or ends the iteration, which has more batches than were loaded ahead. */
  async iterations() {
    const files = writeModel('b', 40, 5000);
    for (const limits of [{}, { timeoutMs: 60_000 }]) {
      const first = async () => {
        const tensors = new ParallelLoader({ files, maxBatchBytes: 40_000, ...limits }).iterateWeights();
        (await tensors.next()).value[1].dispose();
      };
      await first();
      await nothingHeld();
    }
  },

  /** No tensor was freed before. */
  async header() {
    const path = writeModel('header', 5000, 1);
    const read = async () => assert.ok((await SafeTensorsMetadata.fromFile(path)).has('header.4999'));
    const frees = () =>
      readdirSync('/proc/self/task').some((id) => {
        try {
          return readFileSync(`/proc/self/task/${id}/comm`, 'latin1') === 'fst-free\n';
        } catch {
          return false; // ended meanwhile
        }
      });
    await read();
    assert.ok(!frees());
    for (let turn = 0; turn < 200 && !frees(); ++turn) {
      globalThis.gc();
      await setImmediate();
    }
    assert.ok(frees());
  },
});
