// Loads to two emulated GPUs, and the host, at a time.
const helpers = require('./support/child-helpers.cjs');
const { checkOtherLoaders, endAtMoments, files, TENSORS } = require('./support/child-loads.cjs');
const { assert, checkTensor, main, nothingHeld, ParallelLoader, quiet } = helpers;

const RULES = {
  split: { devices: ['cuda:0', 'cuda:1'] },
  bytes: { devices: ['cuda:1', 'cpu', 'cuda:0'], split: 'bytes' },
  alternating: { device: (name) => `cuda:${Number(name.split('.')[1]) % 2}` },
  map: { device: { 'a.1*': 'cpu', 'c.*': 'cuda:1', '*': 'cuda:0' } },
};

main({
  /** Every byte of every tensor, by each loader and rule. */
  async everyByte(copier) {
    const paths = files();
    for (const [rule, where] of Object.entries(RULES)) {
      const onHost = rule === 'bytes' || rule === 'map';
      if (onHost && copier !== 'nogds') continue; // the others are for GPUs only
      const options = { copier, logger: quiet, ...where };
      const parallel = new ParallelLoader({ files: paths, maxBatchBytes: 1 << 20, ...options });
      const seen = new Set();
      for await (const [name, tensor] of parallel.iterateWeights()) {
        seen.add(String(tensor.device));
        await checkTensor(name, tensor);
      }
      assert.deepEqual([...seen].sort(), Object.keys(parallel.report.devices).sort());
      assert.ok(seen.size > 1, rule);
      assert.equal(parallel.report.copier, copier);
      await parallel.close();
      await checkOtherLoaders(paths, options);
    }
    await nothingHeld();
  },

  /** Over the emulated 3FS, whose mount is the script's folder. */
  async threeFs() {
    const paths = files();
    for (const [rule, where] of Object.entries(RULES)) {
      const loader = new helpers.ParallelThreeFSLoader({ files: paths, mountPoint: helpers.folder, ...where });
      let rings = 0;
      for await (const [name, tensor] of loader.iterateWeights()) {
        rings = Math.max(rings, helpers.nativeMetrics().rings);
        await checkTensor(name, tensor);
      }
      assert.equal(rings, rule === 'bytes' || rule === 'map' ? 2 : 1); // the host has one of its own
      assert.equal(loader.report.readBytes, loader.report.bytes);
      await loader.close();
    }
    await helpers.dropIdleThreeFs();
    await nothingHeld();
  },

  /** Within budgets that are all the memory there is: a GPU refuses what is above it, and says so on stderr. */
  async budget(bytes) {
    const paths = files();
    for (const where of [RULES.split, RULES.alternating]) {
      for (const order of ['file', 'ready']) {
        const loader = new ParallelLoader({ files: paths, order, deviceMemoryBudget: Number(bytes), ...where });
        let tensors = 0;
        for await (const [name, tensor] of loader.iterateWeights()) {
          await checkTensor(name, tensor);
          ++tensors;
        }
        assert.equal(tensors, TENSORS);
        await loader.close();
      }
    }
    await nothingHeld();
  },

  /** A call or a copy of one GPU fails: the load is over on both. */
  async fails(code) {
    const paths = files();
    const loader = new ParallelLoader({ files: paths, bounceBufferSize: 65536, logger: quiet, ...RULES.alternating });
    const load = async () => {
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    };
    await assert.rejects(load, { code });
    await loader.close();
    await nothingHeld();
  },

  /** close() and an abort at any moment. */
  async ends() {
    const paths = files();
    const options = { files: paths, bounceBufferSize: 65536, logger: quiet };
    await endAtMoments((n) => ({ ...options, ...Object.values(RULES)[n % 4] }));
  },
});
