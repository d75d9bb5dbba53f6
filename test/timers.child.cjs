// Loads while node:test's fake timers are in place, also those of node:timers and node:timers/promises.
const { mock } = require('node:test');
const {
  assert,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsMetadata,
  writeModel,
} = require('./support/child-helpers.cjs');

const COUNT = 60_000; // headers and plans of that many take more than one turn
const file = writeModel('many', COUNT, 1);

main({
  async all() {
    mock.timers.enable();
    for (const order of ['file', 'ready']) {
      const loader = new ParallelLoader({ files: [file], order, filter: () => true });
      let tensors = 0;
      for await (const [, tensor] of loader.iterateWeights()) {
        tensor.dispose();
        ++tensors;
      }
      assert.equal(tensors, COUNT);
      await loader.close();
    }
    assert.equal((await SafeTensorsMetadata.fromFile(file)).tensorCount, COUNT);
    mock.timers.reset();
    await nothingHeld();
  },
});
