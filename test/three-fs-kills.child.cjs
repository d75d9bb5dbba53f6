// Kills processes that load from 3FS, and looks at what is left. In a mount namespace of its own.
const { once } = require('node:events');
const { readdirSync, renameSync } = require('node:fs');
const { join } = require('node:path');
const { assert, generator, main, ParallelThreeFSLoader, setTimeout, writeModel } =
  require('./support/child-helpers.cjs');
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
  const [code] = await mount.client(['load', path]).ended;
  assert.equal(code, 0);
}

/** How long a process takes to begin, and then to load. */
async function durations(mount, path) {
  const start = performance.now();
  const loading = mount.client(['load', path], { LATENCY_MS: 2 });
  await once(loading.stdout, 'data');
  const begins = performance.now();
  await loading.ended;
  return [begins - start, performance.now() - begins];
}

main({
  async load(path) {
    console.log('begins');
    const loader = new ParallelThreeFSLoader({ files: path });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
  },

  /** Loads until it is killed, whatever becomes of the daemon. */
  async loads(path) {
    console.log('begins');
    for (;;) {
      const loader = new ParallelThreeFSLoader({ files: path });
      try {
        for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      } catch {
        await setTimeout(1);
      }
      await loader.close();
    }
  },

  /**
   * Kills as many processes, each at a random moment of its start or of its loads, while the daemon lives, is stopped,
   * or dies and comes back. What is left must go once the daemon has noticed, or with the next loader.
   */
  moments: (count, seed) =>
    FuseMount.use({}, async (mount) => {
      const random = generator(Number(seed));
      const path = model(mount);
      const [startMs, loadMs] = await durations(mount, path);
      const seen = { alive: 0, stopped: 0, restarted: 0, linked: 0, left: 0 };
      for (let i = 0; i < Number(count); ++i) {
        const state = ['alive', 'stopped', 'restarted'][i % 3];
        const loading = mount.client(['loads', path], { LATENCY_MS: 2 });
        const inStart = random() < 0.2;
        if (!inStart) await once(loading.stdout, 'data');
        const ms = random() * (inStart ? startMs : loadMs);
        const before = random() * ms;
        await setTimeout(before);
        if (state === 'stopped') mount.stop();
        if (state === 'restarted') await mount.restart({ autoUnmount: random() < 0.5 });
        await setTimeout(ms - before);
        if (state !== 'stopped') seen.linked += (await mount.links()).length > 0;
        loading.kill('SIGKILL');
        if (state === 'stopped') {
          await setTimeout(random() * 20);
          mount.resume();
        }
        await loading.ended;
        const when = `after kill ${i} of seed ${seed}, the daemon ${state}`;
        await mount.empty().catch((error) => assert.fail(`${when}: ${error.message}`));
        ++seen[state];
        if (shared().length > 0) {
          ++seen.left;
          await loadWhole(mount, path);
        }
        assert.deepEqual(shared(), [], when);
      }
      console.log(JSON.stringify(seen));
    }),

  /** The daemon holds back its answer to this link (1: of the buffer, 2: of the ring) while the process is killed. */
  whileLinked: (link) =>
    FuseMount.use({}, async (mount) => {
      const path = model(mount);
      await mount.command(`hold ${link}`);
      const loading = mount.client(['load', path]);
      await until('shared memory that is not linked yet', async () => {
        const links = await mount.links();
        const [name, ...others] = shared(); // a link's own is there until its process goes on
        const linked = links.some(({ target }) => target.endsWith(`/${name}`));
        return links.length === Number(link) - 1 && name && !linked && others.length === 0;
      });
      loading.kill('SIGKILL');
      await setTimeout(50);
      await mount.command('hold 0');
      await loading.ended;
      await mount.empty();
      assert.equal(shared().length, 1);
      await loadWhole(mount, path);
      assert.deepEqual(shared(), []);
    }),
});
