// Loads to two emulated GPUs at a time, and to each alone: prints the medians in seconds, by loader. Arguments: bytes
// of each tensor, how many of them go to cuda:0 and to cuda:1, runs.
const {
  assert,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  writeModel,
} = require('../support/child-helpers.cjs');

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

const LOADERS = {
  async parallel(files, options) {
    const loader = new ParallelLoader({ files, maxBatchBytes: 16 << 20, ...options });
    return {
      load: async () => {
        let bytes = 0;
        for await (const [, tensor] of loader.iterateWeights()) {
          bytes += tensor.byteLength;
          tensor.dispose();
        }
        return bytes;
      },
      close: () => loader.close(),
    };
  },
  async files(files, options) {
    const loader = new SafeTensorsFileLoader(options);
    await loader.addFilenames(files);
    return {
      load: async () => {
        const buffer = await loader.copyFilesToDevice();
        await buffer.close();
        return loader.report.bytes;
      },
      close: () => loader.close(),
    };
  },
};

main({
  async measure(bytes, first, second, runs) {
    const [size, counts] = [Number(bytes), [Number(first), Number(second)]];
    const files = [writeModel('a', counts[0], size / 4), writeModel('b', counts[1], size / 4)];
    const device = (name) => (name.startsWith('a.') ? 'cuda:0' : 'cuda:1');
    const result = {};
    for (const [kind, make] of Object.entries(LOADERS)) {
      const ways = [
        await make(files, { device }),
        await make(files[0], { device: 'cuda:0' }),
        await make(files[1], { device: 'cuda:1' }),
      ];
      const seconds = ways.map(() => []);
      for (let run = 0; run <= Number(runs); ++run) {
        for (const [i, { load }] of ways.entries()) {
          const start = performance.now();
          const loaded = await load();
          if (run > 0) seconds[i].push((performance.now() - start) / 1000); // the first makes the slots
          assert.equal(loaded, size * (i === 0 ? counts[0] + counts[1] : counts[i - 1]));
        }
      }
      for (const { close } of ways) await close();
      const [together, ...alone] = seconds.map(median);
      result[kind] = { together, alone, ratio: together / Math.max(...alone) };
    }
    await nothingHeld();
    console.log(JSON.stringify(result));
  },
});
