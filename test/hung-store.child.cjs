// Loads from a store that hangs: a read that never comes back, or a real FUSE mount whose daemon was stopped (SIGSTOP).
const { once } = require('node:events');
const { renameSync, writeSync } = require('node:fs');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const helpers = require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');
const { assert, fakeReader, main, ParallelLoader, registerCopier } = helpers;

registerCopier('stalled', fakeReader({ stallAt: 1 }));

const LIMIT_MS = 300;
const quiet = { debug() {}, info() {}, warn() {} };

/** Loads until it is STALLED, and closes: what hangs is left behind. */
async function stall(options) {
  const loader = new ParallelLoader({ stallTimeoutMs: LIMIT_MS, logger: quiet, ...options });
  await assert.rejects(loader.iterateWeights().next(), { code: 'STALLED' });
  await loader.close();
}

/** Runs a scenario in a process that stops the daemon and is to come to its end before that goes on. */
const whileStopped = (...args) =>
  FuseMount.use({}, async (mount) => {
    const path = join(mount.path, 'm.safetensors');
    renameSync(helpers.writeModel('m', 4, 1 << 20), join(mount.backing, 'm.safetensors'));
    const client = mount.client([...args, path, mount.pid]);
    const closed = once(client, 'close');
    const lines = [];
    try {
      for await (const line of createInterface({ input: client.stdout })) {
        lines.push(line);
        if (line === 'ending') break;
      }
    } finally {
      // The kernel keeps a process that has files open on the mount until the daemon has answered.
      mount.resume();
    }
    assert.deepEqual(lines, ['stopped', 'ok', 'ending']);
    assert.deepEqual(await closed, [0, null]);
  });

function stopDaemon(pid) {
  process.kill(Number(pid), 'SIGSTOP');
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

    dataOf: (copier) => whileStopped('data', copier),

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
