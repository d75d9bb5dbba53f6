// Loads from a real FUSE mount whose daemon dies and comes back, in a mount namespace of their own.
const { copyFileSync, readdirSync, readFileSync, renameSync } = require('node:fs');
const { join } = require('node:path');
const {
  assert,
  countRight,
  dropIdleThreeFs,
  emulators,
  fastsafeOpen,
  generator,
  main,
  nativeMetrics,
  nothingHeld,
  ParallelLoader,
  ParallelThreeFSLoader,
  setTimeout,
  ThreeFSLoader,
  writeModel,
} = require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

const TENSORS = 4;
const ELEMENTS = 1 << 20;
const SHARDS = 3;
const LOAD_MS = 500;
const BANDWIDTH = (SHARDS * TENSORS * ELEMENTS * 4) / (LOAD_MS / 1000);
const own = { HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '' };
Object.assign(process.env, emulators.cuda.env({ LEAKS: 'abort-memory' }), emulators.hf3fs.env({ BANDWIDTH }), own);

/** Runs `scenario` with the paths of shards in a mount, a function that starts its daemon again, and the mount. */
const withShards = (scenario) =>
  FuseMount.use({ semaphores: true }, (mount) => {
    // All bytes of tensor i of shard m are m + i.
    const files = Array.from({ length: SHARDS }, (_, m) => {
      renameSync(writeModel(`m${m}`, TENSORS, ELEMENTS, m), join(mount.backing, `m${m}.safetensors`));
      return join(mount.path, `m${m}.safetensors`);
    });
    return scenario(files, () => mount.restart({ semaphores: true }), mount);
  });

/** 'loaded', where every tensor came with its bytes, or the code of a typed error. */
async function outcome(loader) {
  let tensors = 0;
  try {
    for await (const [name, tensor] of loader.iterateWeights()) {
      const [shard, i] = name.slice(1).split('.').map(Number);
      const bytes = Buffer.from(await tensor.toHost());
      assert.ok(bytes.equals(Buffer.alloc(bytes.length, shard + i)), `${name} has wrong bytes`);
      tensor.dispose();
      ++tensors;
    }
  } catch (error) {
    if (!('code' in error) || error.code === 'ERR_ASSERTION') throw error;
    return error.code;
  }
  assert.equal(tensors, SHARDS * TENSORS);
  return 'loaded';
}

/** The outcome of a load by a loader of its own. */
async function loadOnce(files, options = {}) {
  const loader = new ParallelThreeFSLoader({ files, ...options });
  try {
    return await outcome(loader);
  } finally {
    await loader.close();
  }
}

/** How many threads there are; not of the pools of all loaders, which grow to 8 threads each as work comes. */
function threads() {
  const names = readdirSync('/proc/self/task').map((thread) => {
    try {
      return readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim();
    } catch {
      return undefined; // it has ended meanwhile
    }
  });
  const pools = ['fst-work', 'fst-close', 'fst-copy'];
  return names.filter((name) => name !== undefined && !pools.includes(name)).length;
}

/** What the process has of the system when nothing is in use. */
async function held() {
  await nothingHeld();
  await dropIdleThreeFs();
  const maps = readFileSync('/proc/self/maps', 'utf8').split('\n');
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    semaphores: maps.filter((line) => line.includes('/dev/shm/sem.')).length,
    shared: maps.filter((line) => line.includes('/dev/shm/')).length,
    mappings: maps.length,
    threads: threads(),
  };
}

main({
  /** Killed, and back in less than a second, at any moment of a load. */
  backInAMoment: (count, seed, device) =>
    withShards(async (files, restart, mount) => {
      const random = generator(Number(seed));
      const seen = {};
      for (let i = 0; i < Number(count); ++i) {
        const loading = loadOnce(files, { device });
        await setTimeout(random() * LOAD_MS);
        await mount.kill();
        await setTimeout(random() * 300);
        await restart();
        const ended = await loading;
        seen[ended] = (seen[ended] ?? 0) + 1;
      }
      console.log(JSON.stringify(seen));
      assert.deepEqual(
        Object.keys(seen).filter((code) => !['loaded', 'THREEFS_DISCONNECTED'].includes(code)),
        [],
      );
      assert.equal(await loadOnce(files, { device }), 'loaded');
      await nothingHeld();
    }),

  /** As soon as it is dead it is there again: the load goes on, unless the machine was so busy that it noticed. */
  atOnce: (device) =>
    withShards(async (files, restart) => {
      for (let i = 0, ended; ended !== 'loaded'; ++i) {
        assert.ok(i < 5, `${ended} each time`);
        const loading = loadOnce(files, { device });
        await setTimeout(LOAD_MS / 2);
        await restart();
        ended = await loading;
        assert.ok(['loaded', 'THREEFS_DISCONNECTED'].includes(ended), ended);
      }
      await nothingHeld();
    }),

  /** Restarted between headers and data, and under loaders that are used again. */
  betweenLoads: () =>
    withShards(async (files, restart) => {
      for (const copier of ['3fs', 'nogds']) {
        const again = new ParallelLoader({ files, copier });
        const headersFirst = new ThreeFSLoader();
        await headersFirst.addFilenames(files);
        const opened = await fastsafeOpen(files, { copier });
        for (let i = 0; i < 2; ++i) {
          assert.equal(await outcome(again), 'loaded');
          await restart();
        }
        await (await headersFirst.copyFilesToDevice()).close();
        (await opened.getTensor('m1.2')).dispose();
        for (const each of [again, headersFirst, opened]) await each.close();
      }
      await nothingHeld();
    }),

  /** Dead in the middle of a load and when the next one begins, which a later one does not feel. */
  staysDead: (device) =>
    withShards(async (files, restart, mount) => {
      const loader = new ParallelThreeFSLoader({ files, device });
      for (let i = 0; i < 2; ++i) {
        const loading = outcome(loader);
        await setTimeout(LOAD_MS / 4);
        await mount.kill();
        assert.equal(await loading, 'THREEFS_DISCONNECTED');
        assert.equal(await outcome(loader), 'THREEFS_DISCONNECTED');
        assert.equal(await loadOnce(files, { device }), 'THREEFS_DISCONNECTED');
        await restart();
        assert.equal(await loadOnce(files, { device }), 'loaded');
        assert.equal(await outcome(loader), 'loaded');
      }
      await loader.close();
      await nothingHeld();
    }),

  /** What is there when the daemon comes back is another file of the same size. */
  replaced: () =>
    withShards(async (files, restart, mount) => {
      const loading = loadOnce(files);
      await setTimeout(LOAD_MS / 4);
      await mount.kill();
      for (let m = 0; m < SHARDS; ++m) {
        const path = join(mount.backing, `m${m}.safetensors`);
        copyFileSync(path, `${path}.new`);
        renameSync(`${path}.new`, path);
      }
      await restart();
      assert.ok(['FILE_CHANGED', 'THREEFS_DISCONNECTED'].includes(await loading), 'is noticed');
      await nothingHeld();
    }),

  /** A daemon that does not know the files any more through which they are read. */
  stale: () =>
    withShards(async (files, _restart, mount) => {
      const loading = loadOnce(files);
      await setTimeout(LOAD_MS / 2);
      await mount.command('stale');
      assert.equal(await loading, 'loaded');
      await nothingHeld();
    }),

  /** The same between the last read of a file and its comparison. */
  staleAtTheEnd: () =>
    FuseMount.use({}, async (mount) => {
      Object.assign(process.env, emulators.hf3fs.env({ LATENCY_MS: 500 }), own);
      renameSync(writeModel('m', 2, 1000), join(mount.backing, 'm.safetensors'));
      const loader = new ParallelThreeFSLoader({ files: join(mount.path, 'm.safetensors') });
      const loading = countRight(loader);
      while (nativeMetrics().inFlight === 0) await setTimeout(1);
      await setTimeout(100);
      await mount.command('stale');
      assert.equal(await loading, 2);
      await loader.close();
      await nothingHeld();
    }),

  /** After each death the process has what it had after the first. */
  deaths: (count, seed) =>
    withShards(async (files, restart, mount) => {
      const random = generator(Number(seed));
      let first;
      for (let i = 0; i < Number(count); ++i) {
        const loader = new ParallelThreeFSLoader({ files });
        const loading = outcome(loader);
        await setTimeout(random() * LOAD_MS);
        await mount.kill();
        if (i === 0 || random() < 0.5) {
          const ended = await loading;
          assert.ok(['loaded', 'THREEFS_DISCONNECTED'].includes(ended), ended);
        }
        await restart();
        await loading;
        assert.equal(await outcome(loader), 'loaded');
        await loader.close();
        await setTimeout(first ? 0 : 300); // threads that end
        let now = await held();
        first ??= now;
        for (const end = Date.now() + 2_000; now.threads > first.threads && Date.now() < end; now = await held())
          await setTimeout(5);
        console.log(i, JSON.stringify(now));
        // V8 maps and unmaps by itself.
        assert.ok(now.mappings < first.mappings + 20, `${now.mappings} mappings after death ${i}`);
        assert.ok(now.threads <= first.threads, `${now.threads} threads after death ${i}`);
        assert.deepEqual({ ...now, mappings: first.mappings, threads: first.threads }, first, `after death ${i}`);
      }
    }),
});
