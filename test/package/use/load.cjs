// What a user does first, through the entries that it is given; it prints what ran.
exports.load = async function load({ main, ort, testing, tfjs }, kind, where = '') {
  const path = `${kind}.safetensors`;
  const data = Float32Array.of(1, 2, 3, 4);
  await main.saveFile({ w: { shape: [2, 2], data } }, path);
  const loader = new main.ParallelLoader({ files: path });
  for await (const [name, tensor] of loader.iterateWeights()) {
    if (name !== 'w' || tensor.data.join() !== data.join()) throw new Error(`${name} holds ${tensor.data}`);
  }
  await loader.close();
  const header = await main.SafeTensorsMetadata.fromFile(path);
  main.registerCopier(kind, testing.mockCopier({ tensors: { m: Float32Array.of(7) } }));
  const mocked = new main.ParallelLoader({ files: 'none', copier: kind });
  for await (const [name, tensor] of mocked.iterateWeights()) {
    if (name !== 'm' || tensor.data[0] !== 7) throw new Error(`the mock gave ${name}: ${tensor.data}`);
  }
  await mocked.close();
  for (const [name, value] of Object.entries({ onnxruntime: ort.onnxruntime, tfjs: tfjs.tfjs })) {
    if (typeof value !== 'function') throw new Error(`${name} is ${value}`);
  }
  const error = await main.fastsafeOpen('missing.safetensors').catch((reason) => reason);
  if (!(error instanceof main.FastSafetensorsError)) throw new Error(`expected the package's error, found ${error}`);
  console.log(`${kind}${where}: ${[...header.keys()].join()} loaded by ${loader.report.copier}, mock, ${error.code}`);
};
