// What sessions of one model cost, in a process of their own: prints JSON, in bytes above what the process had before.
// `how` is ours (weights loaded before), files (loaded by the session), or theirs (onnxruntime-node).
const { readFileSync } = require('node:fs');
const { setTimeout } = require('node:timers/promises');
const ort = require('onnxruntime-node');
const { createSession } = require('fastsafetensors-node/ort');
const { nativeMetrics } = require('fastsafetensors-node');
const { SafeTensorsFileLoader } = require('fastsafetensors-node');

const [, , how, graph, weights, location, width] = process.argv;
const kib = (key) => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]);
const resident = async () => {
  globalThis.gc();
  await setTimeout(50);
  globalThis.gc();
  return kib('VmRSS') * 1024;
};
const input = () => new ort.Tensor('float32', new Float32Array(Number(width)).fill(0.01), [1, Number(width)]);

const OPEN = {
  ours: async () => {
    const loader = new SafeTensorsFileLoader();
    await loader.addFilenames(weights);
    const buffer = await loader.copyFilesToDevice();
    await loader.close();
    return () => createSession(ort, graph, { weights: buffer });
  },
  files: async () => () => createSession(ort, graph, weights ? { weights } : {}),
  theirs: async () => () =>
    ort.InferenceSession.create(graph, { externalData: [{ path: location, data: readFileSync(weights) }] }),
};

(async () => {
  // Whatever is made once a process is there before the measurement.
  const warm = await ort.InferenceSession.create(process.argv[7]);
  await warm.run({ x: input() });
  await warm.release();
  await (await createSession(ort, process.argv[7])).release();

  const before = await resident();
  const open = await OPEN[how]();
  const sessions = [await open()];
  const { y } = await sessions[0].run({ x: input() });
  const first = (await resident()) - before;
  const peak = kib('VmHWM') * 1024 - before;
  sessions.push(await open());
  const again = await sessions[1].run({ x: input() });
  const second = (await resident()) - before - first;
  console.log(
    JSON.stringify({
      first,
      peak,
      second,
      hostBytes: nativeMetrics().hostBytes,
      outputs: [...y.data.slice(0, 4)],
      same: Buffer.compare(Buffer.from(y.data.buffer), Buffer.from(again.y.data.buffer)) === 0,
    }),
  );
})();
