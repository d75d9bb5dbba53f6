// Loads of *.child.cjs onto several devices.
const helpers = require('./child-helpers.cjs');
const { assert, checkTensor, fastsafeOpen, nothingHeld, ParallelLoader, SafeTensorsFileLoader } = helpers;
const { setTimeout, writeModel } = helpers;

/** Tensors that straddle pieces of 64 KiB, short ones, and many in one piece. */
const files = () => [writeModel('a', 20, 1000), writeModel('b', 3, 300_000), writeModel('c', 2, 50_001)];
const TENSORS = 25;

/** Every byte of every tensor of writeModel(), by the loaders that are no ParallelLoader. */
async function checkOtherLoaders(paths, options) {
  const loader = new SafeTensorsFileLoader(options);
  await loader.addFilenames(paths);
  const buffer = await loader.copyFilesToDevice();
  for (const name of loader.keys()) await checkTensor(name, await buffer.getTensor(name));
  await buffer.close();
  await loader.close();
  const opened = await fastsafeOpen(paths, options);
  for (const [name, tensor] of await opened.getTensors(opened.keys())) await checkTensor(name, tensor);
  await opened.close();
}

/**
 * Loads as `optionsOf` says of 0 to 39, each ended after a quarter of so many milliseconds: the even ones by close(),
 * the odd ones by an abort.
 */
async function endAtMoments(optionsOf) {
  for (let n = 0; n < 40; ++n) {
    const controller = new AbortController();
    const loader = new ParallelLoader({ ...optionsOf(n), signal: controller.signal });
    const reason = new Error('enough');
    const ending = setTimeout(n / 4).then(() => (n % 2 ? controller.abort(reason) : loader.close()));
    try {
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    } catch (error) {
      assert.ok(n % 2 ? error === reason : error.code === 'CLOSED', error);
    }
    await ending;
    await loader.close();
  }
  await nothingHeld();
}

module.exports = { checkOtherLoaders, endAtMoments, files, TENSORS };
