// Takes the links of a load away while it reads. In a mount namespace of its own.
const { randomUUID } = require('node:crypto');
const { once } = require('node:events');
const { readdirSync, renameSync, symlinkSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { assert, countRight, main, nativeMetrics, ParallelThreeFSLoader, setTimeout, writeModel } =
  require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

/** Loads over the mount, and does `take` once reads are under way. */
const whileLoading = (take) =>
  FuseMount.use({}, async (mount) => {
    renameSync(writeModel('m', 4, 1 << 19), join(mount.backing, 'm.safetensors'));
    const loading = mount.client(['load', join(mount.path, 'm.safetensors')], { LATENCY_MS: 250 });
    await once(loading.stdout, 'data');
    const before = await mount.links();
    assert.equal(before.length, 2);
    await take(mount);
    const [code] = await loading.ended;
    assert.equal(code, 0);
  });

main({
  lost: () => whileLoading((mount) => mount.command('lose')),

  reused: () =>
    whileLoading(async (mount) => {
      await mount.command('lose');
      process.seteuid(65534);
      try {
        for (let i = 0; i < 2; ++i) {
          const target = `/dev/shm/hf3fs-iov-${randomUUID()}`;
          writeFileSync(target, Buffer.alloc(4096));
          symlinkSync(target, join(mount.iovs, randomUUID()));
        }
      } finally {
        process.seteuid(0);
      }
      assert.deepEqual(
        (await mount.links()).slice(0, 2).map(({ slot, uid }) => [slot, uid]),
        [
          [0, 65534],
          [1, 65534],
        ],
      );
    }),

  /** One read at a time. The kernel forgets a link after 5 s: who waits for that gives the load up. */
  async load(path) {
    const loader = new ParallelThreeFSLoader({ files: path, entries: 4, stallTimeoutMs: 3500 });
    const loading = countRight(loader);
    while (nativeMetrics().rings === 0 || nativeMetrics().inFlight === 0) await setTimeout(1);
    console.log('loading');
    assert.equal(await loading, 4);
    await loader.close();
    assert.deepEqual(
      readdirSync('/dev/shm').filter((name) => !name.startsWith('hf3fs-iov-')),
      [],
    );
  },
});
