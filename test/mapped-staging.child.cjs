// Loads with staging 'mapped' onto emulated GPUs, which copy late and refuse or abort what a driver may not survive.
const { readFileSync, renameSync, truncateSync, writeFileSync } = require('node:fs');
const helpers = require('./support/child-helpers.cjs');
const { checkOtherLoaders, endAtMoments, files, TENSORS } = require('./support/child-loads.cjs');
const { assert, checkTensor, generator, main, nativeMetrics, nothingHeld, ParallelLoader, quiet } = helpers;
const { setTimeout, writeModel } = helpers;

const mapped = { device: 'cuda:0', staging: 'mapped', bounceBufferSize: 65536, maxThreads: 4, logger: quiet };
const RULES = {
  one: { device: 'cuda:1' },
  split: { device: undefined, devices: ['cuda:0', 'cuda:1'] },
  alternating: { device: (name) => `cuda:${Number(name.split('.')[1]) % 2}` },
  withHost: { device: { 'a.1*': 'cpu', 'c.*': 'cuda:1', '*': 'cuda:0' } },
};
const TICK_MS = 12; // times of files are as fine as the kernel's tick
const FALLBACK = /^read into staging memory, not copied from the page cache by the GPU: /;

async function load(options) {
  const loader = new ParallelLoader(options);
  let tensors = 0;
  try {
    for await (const [name, tensor] of loader.iterateWeights()) {
      await checkTensor(name, tensor);
      ++tensors;
    }
    assert.equal(tensors, TENSORS);
    return loader.report;
  } finally {
    await loader.close();
  }
}

main({
  /** Every byte, by each loader, to one device and several. */
  async everyByte() {
    const paths = files();
    for (const where of Object.values(RULES)) {
      const options = { ...mapped, ...where };
      for (const order of ['file', 'ready'])
        assert.deepEqual((await load({ files: paths, order, ...options })).notes, []);
      await checkOtherLoaders(paths, options);
    }
    await nothingHeld();
  },

  /** What cannot be copied from the page cache is read, and the notes say why. */
  async fallsBack(reason) {
    const paths = files();
    const { notes, fallbacks } = await load({ files: paths, ...mapped });
    assert.equal(notes.length, 1, notes.join('\n'));
    assert.match(notes[0], FALLBACK);
    assert.match(notes[0], new RegExp(reason));
    assert.deepEqual(fallbacks, []);
    await nothingHeld();
  },

  async fails(code) {
    const paths = files();
    await assert.rejects(load({ files: paths, ...mapped }), { code });
    await nothingHeld();
  },

  /** What plain reads do not bring is not mapped. */
  async others() {
    const paths = files();
    for (const options of [{ copier: 'gds' }, { hostMemoryBudget: 262_144 / 2 }]) {
      if (options.copier) {
        const { notes, copier } = await load({ files: paths, ...mapped, ...options });
        assert.equal(copier, 'gds');
        assert.match(notes[0], FALLBACK);
      } else {
        await assert.rejects(load({ files: paths, ...mapped, ...options }), { code: 'BUDGET_INFEASIBLE' });
      }
    }
    await nothingHeld();
  },

  /** Locked pages are staging: they keep to the host's budget and are counted. */
  async budget(bytes) {
    const paths = files();
    let most = 0;
    const timer = setInterval(() => {
      most = Math.max(most, nativeMetrics().stagingBytes);
    }, 1);
    const { notes } = await load({ files: paths, ...mapped, hostMemoryBudget: Number(bytes) });
    clearInterval(timer);
    assert.deepEqual(notes, []);
    assert.ok(most > 0 && most <= Number(bytes), `${most}`);
    await nothingHeld();
  },

  /** close() and an abort at any moment. */
  async ends() {
    const paths = files();
    await endAtMoments((n) => ({ files: paths, ...mapped, ...Object.values(RULES)[n % 4] }));
  },

  /** A file that somebody changes gives its bytes or FILE_CHANGED, never a signal or other bytes. */
  async changes() {
    const random = generator(7);
    const outcomes = new Set();
    for (let round = 0; round < 60; ++round) {
      const path = writeModel('x', 8, 40_000);
      const other = writeModel('y', 8, 40_000, 100);
      await setTimeout(TICK_MS);
      const loader = new ParallelLoader({ files: path, ...mapped, maxBatchBytes: 200_000 });
      const writer = setTimeout(random() * 12).then(() => {
        const kind = round % 4;
        if (kind === 0) truncateSync(path, Math.floor(random() * 1_200_000));
        if (kind === 1) writeFileSync(path, readFileSync(other), { flag: 'r+' });
        if (kind === 2) writeFileSync(path, readFileSync(other));
        if (kind === 3) renameSync(other, path);
      });
      try {
        let seed; // of a load that begins when the file was changed, the other one
        for await (const [name, tensor] of loader.iterateWeights()) {
          const [first] = await tensor.toHost();
          seed ??= (first - Number(name.split('.')[1])) & 255;
          assert.ok(seed === 0 || seed === 100, `${name} begins with ${first}`);
          await checkTensor(name, tensor, seed);
        }
        outcomes.add('read');
      } catch (error) {
        // A header may be looked at while it is written.
        assert.ok(error instanceof helpers.FastSafetensorsError, error);
        outcomes.add(error.code);
      }
      await writer;
      await loader.close();
    }
    assert.ok(outcomes.has('FILE_CHANGED'), [...outcomes].join(', '));
    await nothingHeld();
  },
});
