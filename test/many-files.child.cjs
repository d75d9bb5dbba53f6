// Loads many small files.
const { readFileSync } = require('node:fs');
const {
  assert,
  fastsafeOpen,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  writeModel,
} = require('./support/child-helpers.cjs');

main({
  async load(_, count) {
    const files = Array.from({ length: Number(count) }, (_, i) => writeModel(`f${i}`, 2, 8, i));
    for (const options of [{}, { staging: 'always' }, { order: 'ready', queueSize: 2, maxBatchBytes: 1000 }]) {
      const loader = new ParallelLoader({ files, ...options });
      let tensors = 0;
      for await (const [name, tensor] of loader.iterateWeights()) {
        const [file, i] = name.slice(1).split('.').map(Number);
        assert.ok((await tensor.toHost()).every((byte) => byte === ((file + i) & 255)));
        tensor.dispose();
        ++tensors;
      }
      assert.equal(tensors, 2 * files.length);
      await loader.close();
    }
    const single = new SafeTensorsFileLoader();
    await single.addFilenames(files);
    const buffers = await single.copyFilesToDevice();
    await buffers.close();
    await single.close();
    const opened = await fastsafeOpen(files);
    (await opened.getTensor(`f${files.length - 1}.1`)).dispose();
    await opened.close();
    await nothingHeld();
  },

  async table(_, count) {
    const files = Array.from({ length: Number(count) }, (_, i) => writeModel(`f${i}`, 1, 8, i));
    const loader = new ParallelLoader({ files });
    for await (const [, tensor] of loader) tensor.dispose();
    const size = () => Number(/^FDSize:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'latin1'))[1]);
    while (size() < files.length) await new Promise((resolve) => setTimeout(resolve, 10)); // the test has a limit
  },
});
