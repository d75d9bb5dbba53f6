// Files with holes on a real FUSE mount, in a mount namespace of their own.
const { closeSync, ftruncateSync, openSync, renameSync, statSync, writeSync } = require('node:fs');
const { join } = require('node:path');
const { assert, emulators, main, nothingHeld, ParallelLoader, SafeTensorsMetadata, writeModel } =
  require('./support/child-helpers.cjs');
const { FuseMount } = require('./support/fuse-mount.cjs');

Object.assign(process.env, emulators.hf3fs.env(), { HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '' });

/** A model whose second half was never written. */
function sparseModel(mount) {
  const path = join(mount.backing, 'm.safetensors');
  renameSync(writeModel('m', 4, 1 << 18), path);
  const { size } = statSync(path);
  const hole = Math.floor(size / 2);
  const file = openSync(path, 'r+');
  ftruncateSync(file, hole);
  ftruncateSync(file, size);
  closeSync(file);
  return { path: join(mount.path, 'm.safetensors'), hole };
}

main({
  inData: (copier) =>
    FuseMount.use({}, async (mount) => {
      const { path, hole } = sparseModel(mount);
      for (let round = 0; round < 2; ++round) {
        const loader = new ParallelLoader({ files: path, copier });
        const load = async () => {
          for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
        };
        await assert.rejects(load, (error) => {
          assert.deepEqual([error.code, error.path], ['SHORT_READ', path], error.message);
          assert.match(error.tensor, /^m\.[23]$/);
          assert.ok(error.offset >= hole);
          assert.match(error.message, /hole/);
          return true;
        });
        await loader.close();
      }
      await nothingHeld();
    }),

  inHeader: () =>
    FuseMount.use({}, async (mount) => {
      const path = join(mount.path, 'm.safetensors');
      const file = openSync(join(mount.backing, 'm.safetensors'), 'w');
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(100_000n);
      writeSync(file, length);
      ftruncateSync(file, 1 << 20);
      closeSync(file);
      await assert.rejects(SafeTensorsMetadata.fromFile(path), (error) => {
        assert.deepEqual([error.code, error.path], ['SHORT_READ', path], error.message);
        assert.match(error.message, /hole/);
        return true;
      });
      await nothingHeld();
    }),
});
