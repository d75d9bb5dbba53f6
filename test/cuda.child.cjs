// Loads onto GPUs, emulated ones unless test/gpu runs this: which libraries are there, how many GPUs, and what fails,
// the environment says.
const { existsSync } = require('node:fs');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const helpers = require('./support/child-helpers.cjs');
const {
  assert,
  checkTensor,
  copierAvailability,
  fastsafeOpen,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  writeModel,
} = helpers;

const LAST = `cuda:${Number(process.env.FST_TEST_GPUS ?? 2) - 1}`;
const warnings = [];
const quiet = {
  debug() {},
  info() {},
  warn(message) {
    warnings.push(message);
  },
};

/** Every byte of every tensor by each loader; the reports. */
async function loadAll(files, options) {
  const reports = [];
  const parallel = new ParallelLoader({ files, maxBatchBytes: 1 << 20, logger: quiet, ...options });
  for await (const [name, tensor] of parallel.iterateWeights()) await checkTensor(name, tensor);
  reports.push({ ...parallel.report, warnings: warnings.splice(0) });
  await parallel.close();
  const loader = new SafeTensorsFileLoader({ logger: quiet, ...options });
  await loader.addFilenames(files);
  const buffers = await loader.copyFilesToDevice();
  for (const name of loader.keys()) await checkTensor(name, await buffers.getTensor(name));
  reports.push({ ...loader.report, warnings: warnings.splice(0) });
  await buffers.close();
  await loader.close();
  const opened = await fastsafeOpen(files, { logger: quiet, ...options });
  for (const name of opened.keys().slice(0, 5)) await checkTensor(name, await opened.getTensor(name));
  await opened.close();
  reports.push({ copier: reports[0].copier, fallbacks: [], warnings: warnings.splice(0) });
  return reports;
}

const files = () => [writeModel('a', 40, 1000), writeModel('b', 3, 300_000), writeModel('c', 1, 1)];

if (!isMainThread) {
  loadAll(workerData.files, workerData.options).then(
    () => parentPort.postMessage('loaded'),
    (error) => parentPort.postMessage(String(error)),
  );
} else {
  main({
    /** Main thread and two workers at once, on both devices. */
    async everywhere(copier) {
      const paths = files();
      const worker = (device) =>
        new Promise((resolve, reject) => {
          const thread = new Worker(__filename, { workerData: { files: paths, options: { device, copier } } });
          thread.on('message', resolve).on('error', reject);
        });
      const [reports, ...workers] = await Promise.all([
        loadAll(paths, { device: LAST, copier }),
        worker('cuda:0'),
        worker(LAST),
      ]);
      assert.deepEqual(workers, ['loaded', 'loaded']);
      for (const report of reports) {
        assert.equal(report.copier, copier);
        assert.deepEqual(report.fallbacks, []);
      }
      await nothingHeld();
    },

    /** What 'auto' chooses, and what availability says. */
    async chooses(expected, options = '{}') {
      const [report] = await loadAll(files(), { device: 'cuda:0', ...JSON.parse(options) });
      assert.equal(report.copier, expected);
      assert.deepEqual(report.fallbacks, []);
      assert.deepEqual(await copierAvailability('nogds', 'cuda:0').then(({ available }) => available), true);
      const found = await copierAvailability(expected, 'cuda:0');
      assert.equal(found.available, true);
      assert.ok(existsSync(found.library), found.library);
      assert.match(found.version, /^\d+\.\d+/);
      await nothingHeld();
    },

    async unavailable(copier, device, reason, remedy = '') {
      const found = await copierAvailability(copier, device);
      assert.match(found.remedy, new RegExp(remedy));
      assert.equal(found.available, false);
      assert.match(found.reason, new RegExp(reason));
      assert.ok(found.remedy.length > 0);
    },

    /** copier by name, where availability says no: the load's own answer. */
    async refused(copier, device, code) {
      const loader = new ParallelLoader({ files: files(), device, copier, logger: quiet });
      await assert.rejects(loader.iterateWeights().next(), { code });
      await loader.close();
      await nothingHeld();
    },

    /** The first load fails with a code (or falls back), the second works. */
    async failsOnce(copier, code) {
      const paths = files();
      await assert.rejects(loadAll(paths, { device: 'cuda:0', copier }), (error) => {
        assert.equal(error.code, code, error);
        assert.ok(error.message.length > 20);
        return true;
      });
      await loadAll(paths, { device: 'cuda:0', copier });
    },

    async lostDevice(copier) {
      const paths = files();
      await assert.rejects(loadAll(paths, { device: 'cuda:0', copier }), { code: 'CUDA_ERROR', message: /lost/ });
      await assert.rejects(loadAll(paths, { device: 'cuda:0', copier }), { code: 'CUDA_ERROR' });
      await loadAll(paths, { device: 'cuda:1', copier });
    },

    /** With `fallback`, what takes the place of a copier that is not available. */
    async standsIn(asked, to, reason) {
      const reports = await loadAll(files(), { device: 'cuda:0', copier: asked, fallback: 'nogds' });
      for (const { copier, fallbacks, warnings } of reports.slice(0, 2)) {
        assert.equal(copier, to);
        assert.deepEqual(
          fallbacks.map((fallback) => `${fallback.from} to ${fallback.to}`),
          Array(3).fill(`${asked} to ${to}`),
        );
        assert.match(fallbacks[0].reason, new RegExp(reason));
        assert.equal(warnings.length, 1);
      }
      await nothingHeld();
    },

    async fallsBack(to, count) {
      const reports = await loadAll(files(), { device: 'cuda:0', copier: 'gds' });
      for (const { copier, fallbacks, warnings } of reports.slice(0, 2)) {
        assert.equal(copier, 'gds');
        assert.equal(fallbacks.length, Number(count));
        for (const fallback of fallbacks)
          assert.match(`${fallback.from} to ${fallback.to}`, new RegExp(`^gds to ${to}$`));
        assert.equal(warnings.length, 1);
        assert.ok(warnings[0].includes(fallbacks[0].reason), warnings[0]);
      }
      // The five tensors that were asked for one by one are all of the first file.
      assert.ok(reports[2].warnings.length <= 1, reports[2].warnings.join('\n'));
      await nothingHeld();
    },
  });
}
