// ONNX Runtime's values and sessions on emulated GPUs. Which ONNX Runtime, the first argument says: the real one, which
// has no provider for GPUs here, or the emulated one (csrc/emulators/onnxruntime), whose models are all y = x + w.
// FST_TEST_GPUS says how many GPUs there are.
const { join } = require('node:path');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { createSession, onnxruntime } = require('fastsafetensors-node/ort');
const helpers = require('../support/child-helpers.cjs');
const { assert, endAt, main, nativeMetrics, nothingHeld, SafeTensorsFileLoader, setImmediate, setTimeout } = helpers;

const top = join(__dirname, '..', '..');
// What ONNX Runtime sees is not part of the package's surface.
const { native } = require(join(top, 'dist', 'src', 'native', 'addon.js'));
const [runtime, model, weights] = isMainThread ? process.argv.slice(3) : workerData;

function load() {
  if (runtime === 'real') return require('onnxruntime-node');
  process.dlopen({ exports: {} }, join(top, 'build', 'cmake', 'emulators', 'onnxruntime', 'libonnxruntime.so.1'));
  return require('onnxruntime-common');
}
const ort = load();

const GPUS = Number(process.env.FST_TEST_GPUS ?? 2);
const LAST = `cuda:${GPUS - 1}`;

const COUNT = 512;
const w = (i) => 0.5 * (i - 256);
const x = (scale = 1) =>
  new ort.Tensor(
    'float32',
    Float32Array.from({ length: COUNT }, (_, i) => scale * i),
    [COUNT],
  );
const expectSum = (data, scale = 1, times = 1) => {
  assert.equal(data.length, COUNT);
  for (let i = 0; i < COUNT; ++i) assert.equal(data[i], scale * i + times * w(i));
};

async function loadBuffer(device, options = {}) {
  const loader = new SafeTensorsFileLoader({ device, ...options });
  await loader.addFilenames(weights);
  const buffer = await loader.copyFilesToDevice();
  await loader.close();
  return buffer;
}
const onDevice = { preferredOutputLocation: 'gpu-buffer' };
const open = (device, options = {}) => createSession(ort, model, { weights, device, ...options });

async function compute(device) {
  const session = await open(device);
  const { y } = await session.run({ x: x(3) });
  expectSum(y.data, 3);
  await session.release();
}

if (!isMainThread) {
  compute(LAST).then(
    () => parentPort.postMessage('computed'),
    (error) => parentPort.postMessage(String(error)),
  );
} else {
  main({
    /** The very pointer, the device and NVIDIA's vendor id, as ONNX Runtime itself says. */
    async values() {
      await createSession(ort, model, { weights }).then((session) => session.release()); // makes its environment
      for (const index of [0, 1]) {
        const buffer = await loadBuffer(`cuda:${index}`);
        const pointers = new Set();
        for (const name of buffer.keys()) {
          const tensor = await buffer.getTensor(name);
          const { allocation, offset } = tensor.placement;
          const source = {
            type: 1,
            dims: tensor.shape,
            memory: allocation.handle,
            offset,
            byteLength: tensor.byteLength,
          };
          const { pointer, byteLength, ...rest } = native().ortDescribe(source);
          assert.deepEqual(rest, { device: `cuda:${index}`, name: 'Cuda', id: index, vendorId: 0x10de });
          assert.equal(pointer, tensor.pointer);
          assert.equal(byteLength, tensor.byteLength);
          assert.equal(pointer % 256n, 0n);
          pointers.add(pointer);
          tensor.dispose();
        }
        assert.equal(pointers.size, 2);
        await buffer.close();
      }
      await nothingHeld();
    },

    /** Devices that differ are typed errors; the emulated ONNX Runtime would end the process. */
    async mismatches() {
      const refused = (message) => ({ code: 'INVALID_ARGUMENT', message });
      const far = await loadBuffer('cuda:1');
      const host = await loadBuffer('cpu');
      await assert.rejects(open('cpu', { weights: far }), refused(/they are on cuda:1, but the session runs on cpu/));
      await assert.rejects(open('cuda:0', { weights: far }), refused(/on cuda:1, but the session runs on cuda:0/));
      await assert.rejects(open('cuda:0', { weights: host }), refused(/on cpu, but the session runs on cuda:0/));
      const tensor = await far.getTensor('w');
      const adopted = await onnxruntime(ort).adopt(await far.getTensor('w'));
      for (const device of runtime === 'real' ? ['cpu'] : ['cpu', 'cuda:0']) {
        const session = await open(device);
        const message = new RegExp(`"[xy]" is on cuda:1, but the session runs on ${device}`);
        await assert.rejects(session.run({ x: tensor }), refused(message));
        await assert.rejects(session.run({ x: adopted }), refused(message));
        await assert.rejects(session.run({ x: x() }, { y: adopted }), refused(message));
        expectSum((await session.run({ x: x() })).y.data);
        await session.release();
      }
      for (const thing of [tensor, adopted]) thing.dispose();
      await far.close();
      await host.close();
      await nothingHeld();
    },

    /** onnxruntime(ort): tensors outlive what they came from, in every order of ending. */
    async adopted() {
      const orders = [
        ['read', 'close', 'dispose'],
        ['close', 'read', 'dispose'],
        ['close', 'dispose'],
        ['dispose', 'close'],
        ['close', 'read and dispose'],
        ['close', 'drop'],
      ];
      for (const order of orders) {
        for (const device of ['cuda:0', 'cuda:1']) {
          const buffer = await loadBuffer(device, { framework: onnxruntime(ort) });
          let tensor = await buffer.getTensor('w');
          assert.equal(tensor.location, 'gpu-buffer');
          assert.equal(tensor.gpuBuffer.device, device);
          for (const step of order) {
            if (step === 'close') await buffer.close();
            else if (step === 'dispose') tensor.dispose();
            else if (step === 'drop') tensor = undefined;
            else for (const [i, value] of (await tensor.getData(step !== 'read')).entries()) assert.equal(value, w(i));
          }
        }
      }
      await nothingHeld();
    },

    /** Without a provider nothing is loaded, and the error says what is missing. */
    async noProvider() {
      await assert.rejects(open('cuda:0'), (error) => {
        assert.equal(error.code, 'DEVICE_UNAVAILABLE');
        assert.match(
          error.message,
          /libonnxruntime_providers_shared\.so, which is not there.*npm rebuild onnxruntime-node/,
        );
        assert.match(error.path, /libonnxruntime_providers_shared\.so$/);
        return true;
      });
      await nothingHeld();
    },

    /** Weights, feeds, outputs and given outputs on the device and on the host. */
    async computes() {
      for (const device of new Set(['cuda:0', LAST])) {
        const session = await open(device, { providerOptions: { arena_extend_strategy: 'kSameAsRequested' } });
        assert.equal(session.device, device);
        expectSum((await session.run({ x: x() })).y.data);
        const stays = await open(device, { sessionOptions: onDevice });
        const { y } = await stays.run({ x: x() });
        assert.equal(y.location, 'gpu-buffer');
        assert.equal(y.gpuBuffer.device, device);
        assert.ok(y.gpuBuffer.pointer > 0n);
        const twice = await stays.run({ x: y });
        expectSum(await twice.y.getData(), 1, 2);
        const again = await session.run({ x: twice.y });
        expectSum(again.y.data, 1, 3);
        // Into memory that there is: an earlier output's.
        const written = await stays.run({ x: x(5) }, { y });
        assert.equal(written.y, y);
        expectSum(await y.getData(), 5);
        const buffer = await loadBuffer(device);
        const tensor = await buffer.getTensor('other');
        expectSum((await session.run({ x: tensor })).y.data, 2);
        for (const thing of [y, twice.y, tensor]) thing.dispose();
        await Promise.all([session.release(), stays.release(), buffer.close()]);
      }
      await assert.rejects(open('cuda:0', { providerOptions: { bogus: 1 } }), {
        code: 'ORT_ERROR',
        message: /bogus/,
      });
      await nothingHeld();
    },

    /** One set of weights on the device serves several sessions, whatever ends first. */
    async shared() {
      for (const order of ['buffer first', 'sessions first', 'at once', 'in a run']) {
        const buffer = await loadBuffer(LAST);
        const { deviceBytes } = nativeMetrics();
        const sessions = await Promise.all([0, 1, 2].map(() => open(LAST, { weights: buffer })));
        assert.equal(nativeMetrics().deviceBytes, deviceBytes);
        const runs = sessions.map((session, i) => session.run({ x: x(i) }).catch((error) => error));
        if (order !== 'in a run') await Promise.all(runs);
        if (order === 'buffer first') await buffer.close();
        if (order !== 'in a run') for (const session of sessions) expectSum((await session.run({ x: x(2) })).y.data, 2);
        const ends = sessions.map((session) => session.release());
        if (order === 'sessions first') await Promise.all(ends);
        await buffer.close();
        await Promise.all(ends);
        for (const [i, outcome] of (await Promise.all(runs)).entries()) {
          if (outcome instanceof Error) assert.equal(outcome.code, 'CLOSED');
          else expectSum(outcome.y.data, i);
        }
        await nothingHeld();
      }
    },

    async randomOrders(..._) {
      let state = 7;
      const random = (below) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return (state >>> 8) % below;
      };
      const once = async () => {
        const buffer = await loadBuffer(LAST);
        const roots = new Map([['buffer', buffer]]);
        roots.set('tensor', await buffer.getTensor('w'));
        roots.set('adopted', await onnxruntime(ort).adopt(await buffer.getTensor('w')));
        for (let i = 0; i < 2; ++i) {
          const session = await open(LAST, { weights: buffer, sessionOptions: onDevice });
          roots.set(`session ${i}`, session).set(`output ${i}`, (await session.run({ x: x() })).y);
        }
        while (roots.size > 0) {
          const names = [...roots.keys()];
          const name = names[random(names.length)];
          const object = roots.get(name);
          if (random(3) === 0) await (object.release ?? object.close ?? object.dispose).call(object);
          roots.delete(name);
          if (random(3) === 0) globalThis.gc();
          if (random(4) === 0) await setImmediate();
          for (const [left, found] of roots) {
            if (left.startsWith('session')) expectSum(await (await found.run({ x: x(2) })).y.getData(true), 2);
            if (left.startsWith('output')) expectSum(await found.getData());
            if (left === 'adopted') assert.equal((await found.getData())[1], w(1));
          }
        }
      };
      for (let round = 0; round < 25; ++round) await once();
      await nothingHeld();
    },

    async workers() {
      const worker = () =>
        new Promise((resolve, reject) => {
          const thread = new Worker(__filename, { workerData: [runtime, model, weights] });
          thread.on('message', resolve).on('error', reject);
        });
      const [, ...said] = await Promise.all([compute('cuda:0'), worker(), worker()]);
      assert.deepEqual(said, ['computed', 'computed']);
      await setTimeout(20);
      await nothingHeld();
    },

    /** Ends while sessions are made, run and released, and values are read; the arguments are endAt's. */
    endAt: (...args) =>
      endAt(...args.slice(-3), (done) => {
        const work = async (n) => {
          const device = n % 2 === 0 ? 'cuda:0' : LAST;
          const buffer = await loadBuffer(device);
          for (; ; ++n) {
            const session = await open(device, { weights: buffer, sessionOptions: onDevice });
            const { y } = await session.run({ x: x(n) });
            expectSum(await y.getData(), n);
            if (n % 3 !== 0) await session.release();
            done();
          }
        };
        for (let i = 0; i < 4; ++i) work(i);
      }),

    async naturalEnd() {
      const session = await open(LAST, { sessionOptions: onDevice });
      globalThis.kept = [session, await session.run({ x: x() }), await loadBuffer('cuda:0')];
    },
  });
}
