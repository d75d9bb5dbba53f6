// Loads a model over the emulated 3FS, and by the emulated cuFile, onto an emulated GPU: in a process of its own, which
// has them in its environment. It prints what ran.
const { execFileSync } = require('node:child_process');
const { mkdirSync } = require('node:fs');
const { ParallelLoader, saveFile } = require('fastsafetensors-node');
const { emulators } = require('fastsafetensors-node/testing');

const FILE = 'mount/model.safetensors';
const data = Float32Array.from({ length: 300_000 }, (_, i) => i);

async function start() {
  mkdirSync('mount/3fs-virt/iovs', { recursive: true }); // what makes a folder a mount of 3FS
  await saveFile({ w: { shape: [300, 1000], data } }, FILE);
  const env = {
    ...process.env,
    ...emulators.cuda.env({ DEVICES: 2 }),
    ...emulators.cufile.env(),
    ...emulators.hf3fs.env(),
  };
  process.stdout.write(execFileSync(process.execPath, [__filename, 'load'], { env }));
}

async function load() {
  for (const copier of ['3fs', 'gds']) {
    const loader = new ParallelLoader({ files: FILE, copier, device: 'cuda:1' });
    for await (const [name, tensor] of loader.iterateWeights()) {
      const bytes = await tensor.toHost();
      const found = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
      if (name !== 'w' || found.join() !== data.join()) throw new Error(`${name} has other bytes`);
      console.log(`${name} loaded by ${loader.report.copier} onto ${tensor.device}`);
      tensor.dispose();
    }
    await loader.close();
  }
}

(process.argv[2] === 'load' ? load() : start()).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
