// Loads over a FUSE mount, again and again. In a mount namespace of its own.
const { renameSync } = require('node:fs');
const { join } = require('node:path');
const { assert, countRight, dropIdleThreeFs, idleThreeFs, main, nothingHeld, ParallelThreeFSLoader, writeModel } =
  require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

/** Loads the model of `mount` with a loader of its own; its warnings. */
async function load(mount, options = {}) {
  const warnings = [];
  const logger = { debug() {}, info() {}, warn: (message) => warnings.push(message) };
  const loader = new ParallelThreeFSLoader({ files: join(mount.path, 'm.safetensors'), logger, ...options });
  assert.equal(await countRight(loader), 4);
  await loader.close();
  await nothingHeld();
  return warnings;
}

const onMount = (options, scenario) =>
  FuseMount.use(options, async (mount) => {
    renameSync(writeModel('m', 4, 1 << 19), join(mount.backing, 'm.safetensors'));
    await scenario(mount);
  });

const BUFFER = 48 << 20;

main({
  kept: () =>
    onMount({}, async (mount) => {
      assert.deepEqual(await load(mount), []);
      const links = await mount.links();
      assert.equal(links.length, 2);
      const bytes = mount.sharedBytes();
      assert.ok(bytes > BUFFER);
      for (let i = 0; i < 3; ++i) {
        await load(mount);
        assert.deepEqual(await mount.links(), links);
        assert.equal(mount.sharedBytes(), bytes);
      }
      await dropIdleThreeFs();
      await mount.empty();
    }),

  readOnly: () =>
    onMount({ readonly: true }, async (mount) => {
      const warnings = [];
      for (let i = 0; i < 3; ++i) {
        warnings.push(...(await load(mount)));
        const links = (await mount.links()).length;
        assert.equal(links, 2);
        await dropIdleThreeFs(); // the daemon refuses
        assert.deepEqual(idleThreeFs(), { rings: 1, bytes: BUFFER });
      }
      assert.equal(warnings.length, 1);
      for (const text of [mount.path, 'EROFS', 'readonly']) assert.ok(warnings[0].includes(text), warnings[0]);
      await mount.command('readonly 0');
      await dropIdleThreeFs();
      assert.deepEqual(idleThreeFs(), { rings: 0, bytes: 0 });
      await mount.empty();
    }),

  restarted: () =>
    onMount({}, async (mount) => {
      await load(mount);
      await load(mount, { bufferSize: 1 << 20 });
      await mount.restart();
      await load(mount);
      assert.deepEqual(idleThreeFs(), { rings: 1, bytes: BUFFER }); // the other one is gone as well
      assert.equal((await mount.links()).length, 2);
      await dropIdleThreeFs();
      await mount.empty();
    }),

  dead: () =>
    onMount({}, async (mount) => {
      await load(mount);
      await mount.kill();
      await assert.rejects(load(mount), (error) => ['IO_ERROR', 'THREEFS_DISCONNECTED'].includes(error.code));
      await dropIdleThreeFs();
      assert.deepEqual(idleThreeFs(), { rings: 0, bytes: 0 });
    }),

  stopped: () =>
    onMount({}, async (mount) => {
      await load(mount);
      mount.stop();
      await dropIdleThreeFs(); // waits a second for the daemon
      assert.equal(idleThreeFs().rings, 1);
      mount.resume();
      await mount.empty();
      // The exit of another process, which waits a second as well.
      const child = mount.client(['stops', mount.path, String(mount.pid)]);
      const code = await new Promise((resolve) => child.once('close', resolve));
      assert.equal(code, 7);
      mount.resume();
      await mount.empty();
    }),

  async stops(path, daemon) {
    await load({ path });
    assert.equal(idleThreeFs().rings, 1);
    FuseMount.stopDaemon(Number(daemon));
    process.exit(7);
  },
});
