// Uses the package that lies in a folder, where its binary is missing or refused, as a script of a user's would, and
// prints what came of it: node addon-missing.child.cjs <package folder> <platform, or "">
const { join } = require('node:path');

const [folder, platform] = process.argv.slice(2);
if (platform) Object.defineProperty(process, 'platform', { value: platform });

const codeOf = async (call) => {
  try {
    await call();
    return 'works';
  } catch (error) {
    return error.code ?? String(error);
  }
};

async function main() {
  const api = require(folder);
  const { mockCopier } = require(join(folder, 'dist/src/testing/index.js'));
  require(join(folder, 'dist/adapters/ort/index.js'));
  require(join(folder, 'dist/adapters/tfjs/index.js'));
  const { readFileSync } = require('node:fs');
  const file = join(folder, 'written.safetensors');
  const results = {
    saveFile: await codeOf(() => api.saveFile({ w: { shape: [2], data: Float32Array.of(1, 2) } }, file)),
    metadata: await codeOf(() => api.SafeTensorsMetadata.fromFile(file)),
    loader: await codeOf(async () => {
      const loader = new api.ParallelLoader({ files: file });
      try {
        for await (const _ of loader.iterateWeights());
      } finally {
        await loader.close();
      }
    }),
    device: await codeOf(() => api.Device.parse('cuda:1')),
    copiers: await codeOf(() => api.registerCopier('mock', mockCopier({ tensors: { w: Uint8Array.of(1) } }))),
    loadConfig: await codeOf(() => api.loadConfig()),
    metrics: await codeOf(() => api.nativeMetrics()),
    availability: await codeOf(() => api.copierAvailability('nogds')),
  };
  results.mock = await codeOf(async () => {
    const factory = mockCopier({ tensors: { w: Uint8Array.of(1, 2) } });
    const metadata = factory.metadata('any name');
    const device = api.Device.parse('cpu');
    const copier = factory(device)(metadata, device);
    const bytes = new Uint8Array(2);
    const destination = { device, write: async (offset, piece) => bytes.set(piece, offset) };
    const ranges = [{ fileOffset: metadata.dataStart, length: 2, destOffset: 0 }];
    const { signal } = new AbortController();
    await copier.waitIo(copier.submitIo({ path: 'any name', ranges, destination, signal }));
    await copier.close();
    if (String(bytes) !== '1,2') throw new Error(`found ${bytes}`);
  });
  let message = '';
  try {
    api.nativeMetrics();
  } catch (error) {
    message = error.message;
  }
  console.log(JSON.stringify({ results, message, written: readFileSync(file).toString('latin1') }));
}

main();
