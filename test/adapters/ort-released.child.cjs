// What stays of sessions that are over, in a process of their own: prints JSON. The first argument is one of `KINDS`.
const { readdirSync, readFileSync } = require('node:fs');
const { setTimeout: sleep } = require('node:timers/promises');
const ort = require('onnxruntime-node');
const { createSession } = require('fastsafetensors-node/ort');
const { nativeMetrics } = require('fastsafetensors-node');

const [, , kind, graph, weights, times] = process.argv;
const rss = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024;

/** Memory of malloc's arenas that is in RAM: of what begins at a multiple of 64 MiB, and of the heap. */
function arenas() {
  let sum = 0;
  let isArena = false;
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const [, start, rights, inode, name] = /^([0-9a-f]+)-\S+ (\S+) \S+ \S+ (\d+)\s*(.*)/.exec(line) ?? [];
    if (start) {
      const isOwn = rights === 'rw-p' && inode === '0' && name === '';
      isArena = name === '[heap]' || (isOwn && Number.parseInt(start, 16) % 2 ** 26 === 0);
    } else if (isArena && line.startsWith('Rss:')) sum += Number(/\d+/.exec(line)[0]) * 1024;
  }
  return sum;
}

/** How many threads there are of a name. */
const threads = (name) =>
  readdirSync('/proc/self/task').filter((id) => readFileSync(`/proc/self/task/${id}/comm`, 'utf8').trim() === name)
    .length;

/** Creates a session by `open`, runs it with zeros as its inputs, and returns it with its outputs. */
async function used(open) {
  const session = await open();
  const feeds = session.inputMetadata.map(({ name, shape }) => {
    const data = new Float32Array(shape.reduce((product, size) => product * size, 1));
    return [name, new ort.Tensor('float32', data, shape)];
  });
  return { session, outputs: await session.run(Object.fromEntries(feeds)) };
}

const ours = () => createSession(ort, graph, weights ? { weights } : {});
const theirs = () => ort.InferenceSession.create(graph);

async function repeat(open, count = Number(times)) {
  for (let i = 0; i < count; ++i) await (await used(open)).session.release();
  while (nativeMetrics().hostBytes > 0) await sleep(1); // allocations are freed on another thread
  return { rss: rss() };
}

const KINDS = {
  /** Memory after as many sessions as `times`, one after the other. */
  ours: () => repeat(ours),
  theirs: () => repeat(theirs),

  /** Threads that made, ran and freed the sessions, one session after the other; at last those of collected garbage. */
  released: async () => {
    for (let i = 0; i < Number(times); ++i) {
      await (await used(ours)).session.release();
      if (i % 10 === 9) globalThis.gc();
    }
    await sleep(50);
    return { threads: threads('fst-ort') };
  },
  dropped: async () => {
    for (let i = 0; i < Number(times); ++i) {
      await used(ours);
      if (i % 10 === 9) globalThis.gc();
    }
    globalThis.gc();
    while (nativeMetrics().hostBytes > 0) {
      await sleep(10);
      globalThis.gc();
    }
    return { threads: threads('fst-ort') };
  },

  /** The least that malloc had after one of the sessions more than before the first. */
  arenas: async () => {
    const before = arenas();
    const after = [];
    for (let i = 0; i < Number(times); ++i) {
      await repeat(ours, 1);
      after.push(arenas());
    }
    return { bytes: Math.min(...after) - before };
  },

  /** What released sessions cost of which an output is kept. */
  outputs: async () => {
    await (await used(ours)).session.release();
    const before = rss();
    const kept = [];
    for (let i = 0; i < Number(times); ++i) {
      const { session, outputs } = await used(ours);
      kept.push(outputs);
      await session.release();
    }
    return { bytes: rss() - before, kept: kept.length };
  },
};

KINDS[kind]().then((result) => console.log(JSON.stringify(result)));
