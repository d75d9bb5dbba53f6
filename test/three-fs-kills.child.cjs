// Kills processes that load from 3FS, and looks at what is left. In a mount namespace of its own.
const { once } = require('node:events');
const { readdirSync, renameSync } = require('node:fs');
const { join } = require('node:path');
const { assert, main, ParallelThreeFSLoader, setTimeout, writeModel } = require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

const shared = () => readdirSync('/dev/shm');

/** A model in the mount, and its path there. */
function model(mount) {
  renameSync(writeModel('m', 4, 2 << 20), join(mount.backing, 'm.safetensors'));
  return join(mount.path, 'm.safetensors');
}

async function until(what, condition) {
  for (const end = Date.now() + 20_000; !(await condition()); await setTimeout(2)) {
    if (Date.now() > end) throw new Error(`not within 20 s: ${what}`);
  }
}

/** A load that ends by itself. */
async function loadWhole(mount, path) {
  const [code] = await once(mount.client(['load', path]), 'close');
  assert.equal(code, 0);
}

main({
  async load(path) {
    const loader = new ParallelThreeFSLoader({ files: path });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
  },

  /** The daemon holds back its answer to this link (1: of the buffer, 2: of the ring) while the process is killed. */
  whileLinked: (link) =>
    FuseMount.use({}, async (mount) => {
      const path = model(mount);
      await mount.command(`hold ${link}`);
      const loading = mount.client(['load', path]);
      const linked = async () => (await mount.links()).length === Number(link) - 1 && shared().length === 1;
      await until('shared memory that is not linked yet', linked);
      loading.kill('SIGKILL');
      await setTimeout(50);
      await mount.command('hold 0');
      await once(loading, 'close');
      await mount.empty();
      assert.equal(shared().length, 1);
      await loadWhole(mount, path);
      assert.deepEqual(shared(), []);
    }),
});
