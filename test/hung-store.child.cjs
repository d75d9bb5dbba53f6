// Loads from a store that hangs: a read that never comes back, or a real FUSE mount whose daemon was stopped (SIGSTOP).
const { once } = require('node:events');
const { readdirSync, readlinkSync, renameSync, writeSync } = require('node:fs');
const { dirname, join } = require('node:path');
const { createInterface } = require('node:readline');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { held } = require('../dist/src/base/timers.js');
const { native, settled } = require('../dist/src/native/addon.js');
const { EngineLoad } = require('../dist/src/transfer/engine-load.js');
const { Plan } = require('../dist/src/transfer/plan.js');
const helpers = require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');
const { safetensorsHandler } = require('fastsafetensors-node/tfjs');
const {
  assert,
  AutoLoader,
  createCopierConstructor,
  Device,
  fakeReader,
  fastsafeOpen,
  main,
  nativeMetrics,
  ParallelLoader,
  ParallelThreeFSLoader,
  quiet,
  registerCopier,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  ThreeFSLoader,
} = helpers;

const LIMIT_MS = 300;

registerCopier('stalled', fakeReader({ stallAt: 1 }));
// A copier of the user's, around one of this package.
registerCopier('own', () => createCopierConstructor('nogds', 'cpu', { stallTimeoutMs: LIMIT_MS }));

/** Loads until it is STALLED, and closes: what hangs is left behind. */
async function stall(options) {
  const loader = new ParallelLoader({ stallTimeoutMs: LIMIT_MS, logger: quiet, ...options });
  await assert.rejects(loader.iterateWeights().next(), { code: 'STALLED' });
  await loader.close();
}

async function closing(loader, use) {
  try {
    await use(loader);
  } finally {
    await loader.close();
  }
}

/**
 * Runs a scenario in a process that stops the daemon and is to end before that goes on; to begin to end, where it has
 * files open: the kernel then keeps it until the daemon has answered.
 */
const whileStopped = (scenario, args, hasFilesOpen, elements = 1 << 20) =>
  FuseMount.use({}, async (mount) => {
    const path = join(mount.path, 'm.safetensors');
    renameSync(helpers.writeModel('m', 4, elements, 0, 8), join(mount.backing, 'm.safetensors'));
    const client = mount.client([scenario, ...args, path, mount.pid]);
    const lines = [];
    try {
      for await (const line of createInterface({ input: client.stdout })) {
        lines.push(line);
        if (line === 'ending' && hasFilesOpen) break;
      }
      if (!hasFilesOpen) assert.deepEqual(await client.ended, [0, null]);
    } finally {
      mount.resume();
    }
    assert.deepEqual(lines, ['stopped', 'ok', 'ending']);
    assert.deepEqual(await client.ended, [0, null]);
  });

function stopDaemon(pid) {
  FuseMount.stopDaemon(Number(pid));
  process.on('exit', () => writeSync(1, 'ending\n'));
  writeSync(1, 'stopped\n');
}

if (!isMainThread) {
  stall(workerData).then(() => parentPort.postMessage('closed'));
} else {
  main({
    // The process has to end by itself.
    read: () => stall({ files: helpers.writeModel('a', 1, 16), copier: 'stalled' }),

    async worker() {
      const worker = new Worker(__filename, {
        workerData: { files: helpers.writeModel('a', 1, 16), copier: 'stalled' },
      });
      const messages = [];
      worker.on('message', (message) => messages.push(message));
      const code = await new Promise((resolve) => worker.on('exit', resolve));
      assert.deepEqual({ code, messages }, { code: 0, messages: ['closed'] });
    },

    /** The engine hears of no limit: it is for the event loop to see that its thread does not come back. */
    async thread(code) {
      const addon = native();
      const { startTransfer } = addon;
      addon.startTransfer = (engine, plan) => startTransfer(engine, plan, {});
      const metadata = await SafeTensorsMetadata.fromFile(helpers.writeModel('a', 1, 16));
      const plan = await Plan.ofTensors([{ metadata, selection: null }], {});
      const engine = addon.createEngine(
        [await settled(addon.openDevice('cpu', false, true))],
        { kind: 'fake', stallAt: 1 },
        {},
      );
      const limits = code === 'STALLED' ? { stallTimeoutMs: 50 } : { stallTimeoutMs: 90_000, timeoutMs: 50 };
      const load = await held(EngineLoad.start(engine, plan, Device.parse('cpu'), limits));
      await helpers.setTimeout(200);
      assert.equal(load.error, null); // it sleeps between its turns
      addon.engineTurn = () => 1;
      await held(assert.rejects(load.complete(), { code, message: /0 of 64 bytes had arrived/ }));
      load.end();
    },

    headersOf: (place, limit) => whileStopped('headers', [place, limit], false),

    /** The daemon is stopped before anything is looked at, and goes on when the process has ended. */
    async headers(place, limit, file, pid) {
      const files = { 'a file': file, 'a folder': dirname(file), 'an index': `${file}.index.json` }[place];
      const limits = limit === 'STALLED' ? { stallTimeoutMs: LIMIT_MS } : { timeoutMs: LIMIT_MS };
      const options = { ...limits, logger: quiet };
      const model = { modelTopology: {}, weightsManifest: [] };
      stopDaemon(pid);
      const looks = {
        ParallelLoader: () => closing(new ParallelLoader({ ...options, files }), (it) => it.iterateWeights().next()),
        AutoLoader: () => closing(new AutoLoader({ ...options, files }), (it) => it.iterateWeights().next()),
        ParallelThreeFSLoader: () =>
          closing(new ParallelThreeFSLoader({ ...options, files }), (it) => it.iterateWeights().next()),
        SafeTensorsFileLoader: () => closing(new SafeTensorsFileLoader(options), (it) => it.addFilenames(files)),
        ThreeFSLoader: () => closing(new ThreeFSLoader(options), (it) => it.addFilenames({ 0: files })),
        fastsafeOpen: () => fastsafeOpen(files, options),
        safetensorsHandler: () => safetensorsHandler(files, { ...options, model }).load(),
      };
      const isSaid = (error) => {
        assert.equal(error.code, limit, error.message);
        assert.match(error.message, new RegExp(`waiting for .* ${files.replaceAll('.', '[.]')} for \\d+ ms`));
        assert.equal(error.path, files);
        return true;
      };
      const twice = [...Object.entries(looks), ...Object.entries(looks)];
      await Promise.all(twice.map(([entry, look]) => assert.rejects(look, isSaid, entry)));
      // What hangs leaves threads to loads from elsewhere.
      const local = new ParallelLoader({ files: helpers.writeModel('local', 3, 16) });
      assert.equal(await helpers.countRight(local), 3);
      await local.close();
    },

    dataAfterHeadersOf: (copier, limit) => whileStopped('dataAfterHeaders', [copier, limit], true),

    /** The daemon is stopped between headers and data: before a look at the mount, a ring, or a file. */
    async dataAfterHeaders(copier, limit, files, pid) {
      const limits = limit === 'STALLED' ? { stallTimeoutMs: LIMIT_MS } : { timeoutMs: LIMIT_MS };
      const loader = new SafeTensorsFileLoader({ ...limits, copier, logger: quiet });
      await loader.addFilenames(files);
      stopDaemon(pid);
      await assert.rejects(loader.copyFilesToDevice(), { code: limit });
      if (limit === 'STALLED') await loader.close(); // it waits stallTimeoutMs, which is 90 s with the other
    },

    sessionOf: () => whileStopped('session', [], false),

    async session(files, pid) {
      const ort = require('onnxruntime-node');
      const { createSession } = require('fastsafetensors-node/ort');
      stopDaemon(pid);
      for (const weights of [undefined, files]) {
        const signal = AbortSignal.timeout(LIMIT_MS);
        await assert.rejects(createSession(ort, files, { weights, signal }), { name: 'TimeoutError' });
      }
    },

    workersOf: () => whileStopped('workers', [], false),

    /** One worker is terminated while it looks at a file; the other ends by itself, when its look was STALLED. */
    async workers(files, pid) {
      stopDaemon(pid);
      const [terminated, ending] = [90_000, LIMIT_MS].map((stallTimeoutMs) => {
        return new Worker(__filename, { workerData: { files, stallTimeoutMs } });
      });
      const exits = [terminated, ending].map((worker) => new Promise((resolve) => worker.on('exit', resolve)));
      assert.deepEqual(await once(ending, 'message'), ['closed']);
      assert.equal(await exits[1], 0);
      await terminated.terminate();
      assert.equal(await exits[0], 1);
    },

    /** A header that was waited for comes when nobody wants it any more. */
    late: () =>
      FuseMount.use({}, async (mount) => {
        const path = join(mount.path, 'm.safetensors');
        renameSync(helpers.writeModel('m', 4, 1000), join(mount.backing, 'm.safetensors'));
        const loader = new ParallelLoader({ files: path, timeoutMs: LIMIT_MS, logger: quiet });
        await SafeTensorsMetadata.fromFile(path); // what stat tells is in the kernel's cache then
        mount.stop();
        await assert.rejects(loader.iterateWeights().next(), { code: 'TIMEOUT', message: /the header of/ });
        mount.resume();
        const opened = () => readdirSync('/proc/self/fd').filter((fd) => linkOf(fd).startsWith(mount.path));
        const linkOf = (fd) => {
          try {
            return readlinkSync(`/proc/self/fd/${fd}`);
          } catch {
            return ''; // closed meanwhile
          }
        };
        while (opened().length > 0) await helpers.setTimeout(5);
        await helpers.nothingHeld();
        assert.equal(await helpers.countRight(new ParallelLoader({ files: path })), 4);
        await loader.close();
      }),

    mappedOf: (when) => whileStopped('mapped', [when], true, 4 << 20),

    /** Files that are mapped without a lease: their store is stopped before they are closed, or while they come in. */
    async mapped(when, files, pid) {
      const options = { files, copier: 'nogds', mmap: true, stallTimeoutMs: LIMIT_MS, logger: quiet };
      if (when === 'closed') {
        const loader = new ParallelLoader(options);
        const tensors = [];
        for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
        assert.ok(loader.report.mappedBytes > 0);
        stopDaemon(pid);
        for (const tensor of tensors) tensor.dispose();
        await loader.close();
      } else {
        // More than there are threads that bring pages in, each stopped between two pieces of 16 MiB.
        const loaders = Array.from({ length: 9 }, () => new ParallelLoader({ ...options, maxBytesPerSecond: 8 << 20 }));
        const iterators = loaders.map((loader) => loader.iterateWeights());
        for (const { value } of await Promise.all(iterators.map((tensors) => tensors.next()))) value[1].dispose();
        stopDaemon(pid);
        const rest = async (tensors) => {
          for await (const [, tensor] of tensors) tensor.dispose();
        };
        await Promise.all(iterators.map((tensors) => assert.rejects(rest(tensors), { code: 'STALLED' })));
        for (const loader of loaders) await loader.close();
      }
      const hung = nativeMetrics().openFiles;
      const local = new ParallelLoader({ files: helpers.writeModel('local', 3, 1 << 16, 0, 8), mmap: true });
      assert.equal(await helpers.countRight(local), 3);
      assert.ok(local.report.mappedBytes > 0);
      await local.close();
      while (nativeMetrics().openFiles > hung) await helpers.setTimeout(5);
    },

    dataOf: (copier) => whileStopped('data', [copier], true),

    /** The daemon is stopped when the first tensor is there. */
    async data(copier, files, pid) {
      const options = { files, copier, stallTimeoutMs: LIMIT_MS, logger: quiet, maxBytesPerSecond: 8 << 20 };
      const loader = new ParallelLoader(options);
      const tensors = loader.iterateWeights();
      (await tensors.next()).value[1].dispose();
      stopDaemon(pid);
      const rest = async () => {
        for await (const [, tensor] of tensors) tensor.dispose();
      };
      await assert.rejects(rest, { code: 'STALLED' });
      await loader.close();
    },
  });
}
