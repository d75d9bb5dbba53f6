// Loads from a real FUSE mount whose daemon has died, in a mount namespace of their own.
const { mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const {
  assert,
  emulators,
  extractMountPoint,
  fastsafeOpen,
  folder,
  main,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
  setTimeout,
  writeModel,
} = require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

Object.assign(process.env, emulators.hf3fs.env(), { HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '' });

const load = async (files, options) => {
  const loader = new ParallelLoader({ files, ...options });
  try {
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
  } finally {
    await loader.close();
  }
};

main({
  everyEntry: (how) =>
    FuseMount.use({ autoUnmount: how === 'auto-unmounted' }, async (mount) => {
      mkdirSync(join(mount.backing, 'model'));
      renameSync(writeModel('m', 4, 100_000), join(mount.backing, 'model', 'm.safetensors'));
      const index = { weight_map: Object.fromEntries([0, 1, 2, 3].map((i) => [`m.${i}`, 'm.safetensors'])) };
      writeFileSync(join(mount.backing, 'model', 'model.safetensors.index.json'), JSON.stringify(index));
      let place = join(mount.path, 'model');
      if (how === 'dead behind a link') {
        symlinkSync(place, join(folder, 'link'));
        place = join(folder, 'link');
      }
      const path = join(place, 'm.safetensors');
      await load(place); // the process has seen the mount
      const before = new SafeTensorsFileLoader();
      await before.addFilenames(path);
      await mount.kill();
      for (let i = 0; how === 'auto-unmounted' && i < 400; ++i) {
        if (!readFileSync('/proc/mounts', 'utf8').includes(mount.path)) break;
        await setTimeout(5);
      }
      const entries = {
        'the folder': () => load(place),
        'a file': () => load(path),
        'several files': () => load([path, `${path}.other`]),
        'the index': () => load(join(place, 'model.safetensors.index.json')),
        USRBIO: () => load(path, { copier: '3fs' }),
        'a header': () => SafeTensorsMetadata.fromFile(path),
        lazily: () => fastsafeOpen(path),
        'a file whose header was read': () => before.copyFilesToDevice(),
        extractMountPoint: async () => extractMountPoint(path),
        'extractMountPoint of what is not there': async () => extractMountPoint(join(place, 'absent')),
        'the mount itself': () => load(mount.path),
      };
      for (const [what, entry] of Object.entries(entries)) {
        await assert.rejects(
          entry,
          (error) => {
            assert.equal(error.code, 'THREEFS_DISCONNECTED', `${what}: ${error.code} ${error.message}`);
            assert.match(error.message, /hf3fs_fuse/);
            return true;
          },
          what,
        );
      }
      await before.close();
      await mount.restart();
      await load(place);
      await nothingHeld();
    }),

  missing: () =>
    FuseMount.use({}, async (mount) => {
      renameSync(writeModel('m', 4, 1000), join(mount.backing, 'm.safetensors'));
      await load(join(mount.path, 'm.safetensors'));
      const path = join(mount.path, 'absent');
      await assert.rejects(load(path), { code: 'IO_ERROR', path });
      await assert.rejects(SafeTensorsMetadata.fromFile(path), { code: 'IO_ERROR', path });
      await assert.rejects(load(join(folder, 'absent')), { code: 'IO_ERROR' });
      await nothingHeld();
    }),
});
