// doctor over a FUSE mount of type fuse.hf3fs whose daemon is alive, stopped or killed; prints the report.
const { doctor } = require('fastsafetensors-node');
const { emulators } = require('fastsafetensors-node/testing');
const { FuseMount } = require('./support/fuse-mount.cjs');

async function main(how) {
  Object.assign(process.env, emulators.hf3fs.env(), { HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '' });
  await FuseMount.use({}, async (mount) => {
    if (how === 'stopped') mount.stop();
    if (how === 'killed') await mount.kill();
    try {
      console.log(JSON.stringify({ path: mount.path, ...(await doctor()) }));
    } finally {
      if (how === 'stopped') mount.resume();
    }
  });
}

main(process.argv[2]);
