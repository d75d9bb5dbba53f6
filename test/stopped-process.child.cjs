// Loads of a process that is stopped (SIGSTOP, a debugger, `docker pause`) for longer than stallTimeoutMs.
const { spawn } = require('node:child_process');
const {
  assert,
  fakeReader,
  main,
  mockCopier,
  nativeMetrics,
  nothingHeld,
  ParallelLoader,
  registerCopier,
  setTimeout,
  writeModel,
} = require('./support/child-helpers.cjs');

const LIMIT_MS = 2000;
const STOPPED_MS = 4000;
// Done soon after the process goes on: what of it lies before and after the stop is far from the limit.
const READ_MS = STOPPED_MS + LIMIT_MS / 8;

registerCopier('slow', fakeReader({ msPerIo: READ_MS }));
registerCopier('slow mock', mockCopier({ delayMs: READ_MS }));
// Not done when the process goes on, however late a busy machine sends it on.
const LATE_MS = READ_MS + LIMIT_MS / 2;
registerCopier('late', fakeReader({ msPerIo: LATE_MS }));
registerCopier('late mock', mockCopier({ delayMs: LATE_MS }));
let submits = () => {};
registerCopier('deaf', () => () => ({
  submitIo() {
    submits();
    return setTimeout(READ_MS);
  },
  waitIo: (pending) => pending,
  close: async () => {},
}));

function stop() {
  spawn('sh', ['-c', `sleep ${STOPPED_MS / 1000}; kill -CONT ${process.pid}`], { stdio: 'ignore' });
  process.kill(process.pid, 'SIGSTOP');
}

async function load(options) {
  const loader = new ParallelLoader({ files: writeModel('a', 1, 16, 7), stallTimeoutMs: LIMIT_MS, ...options });
  try {
    for await (const [, tensor] of loader.iterateWeights()) {
      assert.deepEqual(new Set(await tensor.toHost()), new Set([7]));
      tensor.dispose();
    }
  } finally {
    await loader.close();
    await nothingHeld();
  }
}

async function reading() {
  while (nativeMetrics().inFlight === 0) await setTimeout(1);
}

main({
  async engine() {
    const loading = load({ copier: 'slow' });
    await reading();
    stop();
    await loading;
  },

  async copier() {
    const loading = load({ copier: 'slow mock' });
    await setTimeout(50);
    stop();
    await loading;
  },

  async close() {
    for (const copier of ['slow', 'deaf']) {
      const warnings = [];
      const logger = { debug() {}, info() {}, warn: (message) => void warnings.push(message) };
      const files = writeModel('a', 1, 16);
      const submitted = new Promise((resolve) => {
        submits = resolve;
      });
      const loader = new ParallelLoader({ files, copier, stallTimeoutMs: LIMIT_MS, logger });
      const next = loader.iterateWeights().next();
      next.catch(() => {});
      if (copier === 'slow') await reading();
      else await submitted;
      const closing = loader.close();
      stop();
      await closing;
      await assert.rejects(next, { code: 'CLOSED' });
      assert.deepEqual(warnings, []);
      await nothingHeld();
    }
  },

  async timeout(copier) {
    const loading = load({ copier, timeoutMs: LIMIT_MS });
    await setTimeout(50);
    stop();
    await assert.rejects(loading, { code: 'TIMEOUT' });
  },
});
