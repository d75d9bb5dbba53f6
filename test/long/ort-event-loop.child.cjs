// How long runs hold the event loop, in a process of their own: prints JSON, in milliseconds. `how` is ours or theirs
// (onnxruntime-node).
const { performance } = require('node:perf_hooks');
const ort = require('onnxruntime-node');
const { createSession } = require('fastsafetensors-node/ort');

const [, , how, json] = process.argv;
const { deep, weights, rows, width } = JSON.parse(json);
const options = {}; // as many threads as there are cores

(async () => {
  const session =
    how === 'ours'
      ? await createSession(ort, deep, { weights, sessionOptions: options })
      : await ort.InferenceSession.create(process.argv[4], options);
  const x = new ort.Tensor('float32', new Float32Array(rows * width).fill(0.01), [rows, width]);
  let longest = 0;
  let turns = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    ++turns;
  }, 1);
  await new Promise((resolve) => setTimeout(resolve, 20));
  longest = 0;
  turns = 0;
  last = performance.now();
  const started = last;
  await session.run({ x });
  const took = performance.now() - started;
  longest = Math.max(longest, performance.now() - last);
  clearInterval(timer);
  console.log(JSON.stringify({ took, longest, turns }));
  await session.release();
})();
