// Scenarios over a real FUSE mount, in a mount namespace of their own.
const { spawn } = require('node:child_process');
const { randomUUID } = require('node:crypto');
const { once } = require('node:events');
const {
  closeSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} = require('node:fs');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const { assert, countRight, main, nativeMetrics, nothingHeld, ParallelThreeFSLoader, setTimeout, writeModel } =
  require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

/** A file of /dev/shm. */
function memory(bytes) {
  const path = `/dev/shm/hf3fs-iov-${randomUUID()}`;
  writeFileSync(path, Buffer.alloc(bytes));
  return path;
}

/** A link to new memory: its path. */
function link(mount, { attributes = '', bytes = 8192, target = memory(bytes) } = {}) {
  const path = join(mount.iovs, `${randomUUID()}${attributes}`);
  symlinkSync(target, path);
  return path;
}

/** The daemon comes to have links in these slots; it hears of a folder that is closed a little later. */
async function slots(mount, expected) {
  const now = async () => (await mount.links()).map(({ slot }) => slot);
  for (let i = 0; i < 400 && JSON.stringify(await now()) !== JSON.stringify(expected); ++i) await setTimeout(5);
  assert.deepEqual(await now(), expected);
}

/** A model in the mount, and its path there. */
function model(mount, elements) {
  renameSync(writeModel('m', 4, elements), join(mount.backing, 'm.safetensors'));
  return join(mount.path, 'm.safetensors');
}

main({
  links: () =>
    FuseMount.use({}, async (mount) => {
      const own = openSync(mount.iovs);
      const [a, b, c] = [link(mount), link(mount), link(mount, { attributes: '.r-1.t0' })];
      assert.deepEqual(
        (await mount.links()).map(({ slot, thread, bytes }) => [slot, thread, bytes]),
        [0, 1, 2].map((slot) => [slot, process.pid, 8192]),
      );
      assert.equal(mount.sharedBytes(), 3 * 8192);
      assert.equal(readlinkSync(a), (await mount.links())[0].target);
      // The lowest number that is free comes next.
      unlinkSync(a);
      unlinkSync(b);
      link(mount);
      await slots(mount, [0, 2]);
      assert.equal(readdirSync(mount.iovs).length, 2);
      await slots(mount, []); // readdirSync closed a folder that this thread had opened
      assert.ok(lstatSync(c)); // from the kernel's cache
      assert.throws(() => readlinkSync(c), { code: 'ENOENT' });
      closeSync(own);

      // Another thread's links are no business of this folder.
      const folder = openSync(mount.iovs);
      const other = spawn('ln', ['-s', memory(4096), join(mount.iovs, randomUUID())], { stdio: 'inherit' });
      await once(other, 'close');
      closeSync(folder);
      await slots(mount, [0]);
      await mount.command('no-pids 1');
      link(mount);
      link(mount);
      closeSync(openSync(mount.iovs));
      await slots(mount, [0]);

      // A number that another user has now.
      await mount.command('lose');
      const mine = link(mount);
      await mount.command('lose');
      process.seteuid(65534);
      try {
        link(mount);
      } finally {
        process.seteuid(0);
      }
      assert.throws(() => readlinkSync(mine), { code: 'EPERM' });
      assert.throws(() => unlinkSync(mine), { code: 'ENOENT' });
    }),

  refusals: () =>
    FuseMount.use({ iovs: 2, readonly: true }, async (mount) => {
      const target = memory(8192);
      const refused = (code, name, to = target) =>
        assert.throws(() => symlinkSync(to, join(mount.iovs, name)), { code }, name);
      refused('EIO', 'no-uuid');
      refused('EINVAL', randomUUID(), '/dev/shm/absent');
      refused('EINVAL', randomUUID(), '/dev/shm');
      refused('EINVAL', `${randomUUID()}.b8193`);
      refused('EINVAL', `${randomUUID()}.t0`);
      refused('EINVAL', `${randomUUID()}.r99.t0`);
      const made = link(mount);
      link(mount);
      refused('EMFILE', randomUUID());
      assert.throws(() => unlinkSync(made), { code: 'EROFS' });
      await mount.command('readonly 0');
      unlinkSync(made);
      const denied = link(mount);
      await mount.command('deny 1');
      assert.throws(() => readlinkSync(denied), { code: 'EPERM' });
    }),

  lives: () =>
    FuseMount.use({}, async (mount) => {
      const path = model(mount, 100_000);
      assert.equal(readFileSync(path).length, statSync(path).size);
      assert.equal(statSync(path).blksize, 1 << 20);
      link(mount);
      // In processes of their own: one that has a file open cannot start another while the daemon is stopped.
      const shell = 'exec 3< "$0"; echo open; read -r _; exec 3<&-; echo closed';
      const closing = spawn('bash', ['-c', shell, path], { stdio: ['pipe', 'pipe', 'inherit'] });
      const lines = createInterface({ input: closing.stdout })[Symbol.asyncIterator]();
      assert.equal((await lines.next()).value, 'open');
      mount.stop();
      const asking = spawn('stat', [mount.iovs], { stdio: 'ignore' });
      const answered = once(asking, 'close');
      let closed = false;
      closing.stdin.write('\n');
      const last = lines.next().then(({ value }) => {
        closed = true;
        assert.equal(value, 'closed');
      });
      await setTimeout(100);
      assert.equal(asking.exitCode, null);
      assert.equal(closed, false); // the daemon is asked when a descriptor is closed
      mount.resume();
      await Promise.all([answered, last]);
      const before = statSync(path).dev;
      const file = openSync(path);
      await mount.kill();
      assert.throws(() => readdirSync(mount.path), { code: 'ENOTCONN' });
      await mount.restart({ autoUnmount: true, chunk: 4096 });
      assert.notEqual(statSync(path).dev, before);
      assert.equal(statSync(path).blksize, 4096);
      assert.deepEqual(await mount.links(), []);
      assert.throws(() => readFileSync(file), { code: 'ENOTCONN' });
      await mount.kill();
      assert.throws(() => statSync(path), { code: 'ENOENT' });

      // The semaphores of one that is killed stay in /dev/shm.
      await mount.restart({ semaphores: true });
      const semaphores = ['submit-ios', 'submit-ios.ph', 'submit-ios.pl'].map((name) =>
        readlinkSync(join(mount.iovs, name)),
      );
      assert.equal(new Set(semaphores).size, 3);
      await mount.kill();
      for (const file of semaphores) assert.match(file, /^\/dev\/shm\/sem\.hf3fs-submit-ios\./);
      for (const file of semaphores) unlinkSync(file);

      // A read that ends in a hole is short, and the file is then taken to end there.
      await mount.restart();
      const sparse = join(mount.backing, 'sparse');
      writeFileSync(sparse, Buffer.alloc(8192));
      truncateSync(sparse, 1 << 20);
      assert.equal(readFileSync(join(mount.path, 'sparse')).length, 8192);
    }),

  load: () =>
    FuseMount.use({}, async (mount) => {
      const path = model(mount, 3 << 20);
      const [code] = await mount.client(['loadOne', path]).ended;
      assert.equal(code, 0);
      await mount.empty();
      assert.deepEqual(readdirSync('/dev/shm'), []);
    }),

  async loadOne(path) {
    const loader = new ParallelThreeFSLoader({ files: path });
    assert.equal(await countRight(loader), 4);
    assert.equal(loader.report.copier, '3fs');
    await loader.close();
    await nothingHeld();
  },

  killed: () =>
    FuseMount.use({}, async (mount) => {
      const loading = mount.client(['stall', model(mount, 3 << 20)], { STALL: 1 });
      await once(loading.stdout, 'data');
      assert.equal((await mount.links()).length, 2);
      loading.kill('SIGKILL');
      await loading.ended;
      await mount.empty();
      assert.deepEqual(readdirSync('/dev/shm'), []);
    }),

  /** Says so once reads are in flight, and waits to be killed. */
  async stall(path) {
    const load = new ParallelThreeFSLoader({ files: path }).iterateWeights().next();
    while (nativeMetrics().rings === 0 || nativeMetrics().inFlight === 0) await setTimeout(1);
    console.log('loading');
    await load;
  },
});
