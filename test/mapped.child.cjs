// Processes with mapped tensors, and others that write to their files.
const { spawn, spawnSync } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const { readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } = fs;
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const { Worker, isMainThread, workerData } = require('node:worker_threads');
const {
  assert,
  FastSafetensorsError,
  fastsafeOpen,
  folder,
  generator,
  main,
  nativeMetrics,
  nothingHeld,
  ParallelLoader,
  SafeTensorsFileLoader,
  setImmediate,
  setTimeout,
  writeModel,
} = require('./support/child-helpers.cjs');

const TENSORS = 12;
const ELEMENTS = 48 * 1024;
const TICK_MS = 12; // times of files are as fine as the kernel's tick

/** What a writer does to a file. `other`: a model of the same layout with other bytes. */
const WRITES = {
  truncate: (path) => truncateSync(path, 1000),
  empty: (path) => truncateSync(path, 0),
  overwrite: (path, other) => writeFileSync(path, readFileSync(other), { flag: 'r+' }),
  anew: (path, other) => writeFileSync(path, readFileSync(other)),
  unlink: (path) => rmSync(path),
  replace: (path, other) => renameSync(other, path),
};
const KINDS = Object.keys(WRITES);

/** All bytes of each tensor follow from its name and the model's seed; which seed, undefined where they are mixed. */
function seedOf(name, bytes) {
  const first = bytes[0];
  if (!bytes.equals(Buffer.alloc(bytes.length, first))) return undefined;
  return (first - Number(name.split('.')[1]) + 256) & 255;
}

const bytesOf = ({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

const LOADS = {
  async streamed(files, mmap) {
    const loader = new ParallelLoader({ files, mmap, maxBatchBytes: 4 * ELEMENTS * 3 });
    const tensors = [];
    try {
      for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
    } finally {
      await loader.close();
    }
    return { tensors, mapped: loader.report.mappedBytes > 0 };
  },
  async buffered(files, mmap) {
    const loader = new SafeTensorsFileLoader({ mmap });
    try {
      await loader.addFilenames([files]);
      const buffer = await loader.copyFilesToDevice();
      const tensors = [];
      for (const name of buffer.keys()) tensors.push(await buffer.getTensor(name));
      await buffer.close();
      return { tensors, mapped: loader.report.mappedBytes > 0 };
    } finally {
      await loader.close();
    }
  },
  async lazy(files, mmap) {
    const opened = await fastsafeOpen([files], { mmap });
    try {
      const tensors = [];
      for (const name of opened.keys()) tensors.push(await opened.getTensor(name));
      return { tensors, mapped: mmap === true };
    } finally {
      await opened.close();
    }
  },
};

/** Of a file that is cut short or half written before its header is read. */
const BEFORE_THE_HEADER = /HEADER|METADATA|EOF|SHORT_READ|OFFSET|NOT_SAFETENSORS|INVALID|IO_ERROR|TENSOR/;

/**
 * A process of its own writes to a file at a moment before, during or after its load, while its tensors are read in a
 * loop: each keeps its bytes, or is not handed out.
 */
async function moments(count, seed) {
  const random = generator(Number(seed));
  const writer = new Worker(__filename, { workerData: 'writer' });
  let written = () => {};
  writer.on('message', () => written());
  const tally = { mapped: 0, copied: 0, refused: 0, reads: 0 };
  for (let i = 0; i < Number(count); ++i) {
    const kind = KINDS[Math.floor(random() * KINDS.length)];
    const how = Object.keys(LOADS)[Math.floor(random() * 3)];
    const mmap = how === 'lazy' || random() < 0.5 ? true : 'auto';
    const what = `moment ${i} of seed ${seed}: ${kind}, ${how}, mmap ${mmap}`;
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const other = writeModel('b', TENSORS, ELEMENTS, 100, 8);
    await setTimeout(TICK_MS);
    let done = false;
    const writing = new Promise((resolve) => {
      written = resolve;
    }).then(() => {
      done = true;
    });
    const delayUs = Math.floor(random() ** 2 * 60_000);
    writer.postMessage({ kind, path, other, delayUs });
    let loaded;
    try {
      loaded = await LOADS[how](path, mmap);
    } catch (error) {
      if (!(error instanceof FastSafetensorsError)) throw error;
      assert.ok(error.code === 'FILE_CHANGED' || BEFORE_THE_HEADER.test(error.code), `${what}: ${error.stack}`);
      ++tally.refused;
      await writing;
      continue;
    }
    tally[loaded.mapped ? 'mapped' : 'copied'] += 1;
    const seeds = new Map();
    for (let after = 0; after < 2; after += done ? 1 : 0) {
      for (const tensor of loaded.tensors) {
        const found = seedOf(tensor.name, bytesOf(tensor));
        if (!seeds.has(tensor.name)) seeds.set(tensor.name, found);
        // A copy that was made while the file was written in place may be of both; what was handed out never changes.
        if (loaded.mapped) assert.ok(found === 7 || found === 100, `${what}: ${tensor.name} is mixed`);
        assert.equal(found, seeds.get(tensor.name), `${what}: ${tensor.name} changed`);
        ++tally.reads;
      }
      await setImmediate();
    }
    await writing;
    for (const tensor of loaded.tensors) tensor.dispose();
  }
  await writer.terminate();
  console.log(JSON.stringify(tally));
  assert.ok(tally.mapped >= Number(count) / 4, JSON.stringify(tally));
  await nothingHeld();
}

/** In a worker of the test's: has a process of its own write, so that the kernel's waiting holds nobody else up. */
function serveWrites() {
  const { parentPort } = require('node:worker_threads');
  const writer = spawn(process.execPath, [__filename, 'writer'], { stdio: ['pipe', 'pipe', 'inherit'] });
  writer.stdout.on('data', () => parentPort.postMessage('written'));
  parentPort.on('message', (order) => writer.stdin.write(`${JSON.stringify(order)}\n`));
}

/** The process that writes. */
async function writer() {
  const lines = createInterface({ input: process.stdin });
  for await (const line of lines) {
    const { kind, path, other, delayUs } = JSON.parse(line);
    for (const end = performance.now() + delayUs / 1000; performance.now() < end; ) {}
    WRITES[kind](path, other);
    process.stdout.write('.');
  }
}

async function load(path) {
  const { tensors } = await LOADS.streamed(path, true);
  assert.ok(nativeMetrics().mappedBytes > 0);
  return tensors;
}

function expectBytes(tensors) {
  for (const tensor of tensors) assert.equal(seedOf(tensor.name, bytesOf(tensor)), 7, tensor.name);
}

/** Truncates by a process of its own; milliseconds that it took. */
function truncated(path) {
  const began = performance.now();
  const { status } = spawnSync('sh', ['-c', ': > "$0"', path]);
  assert.equal(status, 0);
  assert.equal(statSync(path).size, 0);
  return performance.now() - began;
}

const MIB = 2 ** 20;

/** A large model, written piece by piece: U8 tensors, all bytes of tensor i are i. */
function writeLarge(name, count, mib) {
  const entries = Array.from(
    { length: count },
    (_, i) =>
      `"${name}.${i}":{"dtype":"U8","shape":[${mib * MIB}],"data_offsets":[${i * mib * MIB},${(i + 1) * mib * MIB}]}`,
  );
  const json = `{${entries.join(',')}}`;
  const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / 8) * 8 - 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const path = join(folder, `${name}.safetensors`);
  const fd = fs.openSync(path, 'w');
  fs.writeSync(fd, Buffer.concat([length, header]));
  for (let i = 0; i < count; ++i) fs.writeSync(fd, Buffer.alloc(mib * MIB, i));
  fs.closeSync(fd);
  return path;
}

/** Of this process, in bytes: `Pss` of /proc/self/smaps_rollup, `RssAnon` of /proc/self/status. */
function memory(file, field) {
  const found = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/self/${file}`, 'latin1'));
  return Number(found[1]) * 1024;
}

const scenarios = {
  moments,
  writer,

  /** Processes over one mapped model share its memory. `mib`: of the model; in tensors of 64. */
  async shared(processes, mib) {
    const path = writeLarge('a', Number(mib) / 64, 64);
    const sharers = Array.from({ length: Number(processes) }, () => {
      const stdio = ['pipe', 'pipe', 'inherit'];
      const child = spawn(process.execPath, ['--expose-gc', __filename, 'sharer', path], { stdio });
      return {
        child,
        ended: once(child, 'exit'),
        lines: createInterface({ input: child.stdout })[Symbol.asyncIterator](),
      };
    });
    const answers = async (question) => {
      for (const { child } of sharers) child.stdin.write(`${question}\n`);
      return Promise.all(sharers.map(async ({ lines }) => JSON.parse((await lines.next()).value)));
    };
    await answers('load'); // all of them, before any is asked what it takes
    const taken = await answers('memory');
    for (const { child } of sharers) child.stdin.end();
    for (const { ended } of sharers) assert.deepEqual(await ended, [0, null]);
    const pss = taken.reduce((sum, { pss }) => sum + pss, 0);
    const own = Math.max(...taken.map(({ own }) => own));
    console.log(JSON.stringify({ mib: Number(mib), pssMib: Math.round(pss / MIB), ownMib: Math.round(own / MIB) }));
    assert.ok(pss <= 1.1 * Number(mib) * MIB, `sum of Pss: ${pss}`);
    assert.ok(own <= 16 * MIB, `peak of memory of its own: ${own}`);
  },
  async sharer(path) {
    let tensors;
    const before = {};
    let peak = 0;
    for await (const question of createInterface({ input: process.stdin })) {
      if (question === 'load') {
        gc();
        before.pss = memory('smaps_rollup', 'Pss');
        before.own = memory('status', 'RssAnon');
        const look = () => {
          peak = Math.max(peak, memory('status', 'RssAnon') - before.own);
        };
        const timer = setInterval(look, 2);
        const loader = new ParallelLoader({ files: path });
        tensors = [];
        for await (const [, tensor] of loader.iterateWeights()) tensors.push(tensor);
        await loader.close();
        assert.equal(loader.report.readBytes, 0);
        for (const { name, data } of tensors)
          for (let i = 0; i < data.length; i += 4096) assert.ok(data[i] === Number(name.split('.')[1]));
        look();
        clearInterval(timer);
        console.log('{}');
      } else {
        console.log(JSON.stringify({ pss: memory('smaps_rollup', 'Pss') - before.pss, own: peak }));
      }
    }
  },

  /** As many writers as there are files, all at once. */
  async manyWriters(count, mib) {
    const paths = Array.from({ length: Number(count) }, (_, i) => writeLarge(`m${i}`, 1, Number(mib)));
    const { tensors } = await LOADS.streamed(paths, true);
    assert.equal(nativeMetrics().hostBytes, 0);
    const began = performance.now();
    const before = process.cpuUsage();
    const { status } = spawnSync('sh', ['-c', 'for f in "$@"; do : > "$f" & done; wait', 'sh', ...paths]);
    const seconds = (performance.now() - began) / 1000;
    const { user, system } = process.cpuUsage(before);
    const cpuSeconds = (user + system) / 1e6;
    assert.equal(status, 0);
    for (const path of paths) assert.equal(statSync(path).size, 0);
    for (const tensor of tensors) assert.equal(seedOf('m.0', bytesOf(tensor)), 0);
    const gigabytes = (count * mib) / 1024;
    console.log(JSON.stringify({ gigabytes, seconds, cpuSeconds }));
    // What it takes of processors holds on a busy machine, too; writers of a quiet one wait no longer than that.
    assert.ok(cpuSeconds <= 2 * gigabytes, `${cpuSeconds} s of processors for ${gigabytes} GB`);
    for (const tensor of tensors) tensor.dispose();
    await nothingHeld();
  },

  /** Stopped amid a load for longer than the kernel makes a writer wait: it is FILE_CHANGED. */
  async stoppedLoading(seconds) {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const logger = { debug() {}, info() {}, warn() {} }; // another test looks at the warning
    const loader = new ParallelLoader({ files: path, mmap: true, maxBatchBytes: 4 * ELEMENTS, queueSize: 1, logger });
    const iterator = loader.iterateWeights();
    const tensors = [(await iterator.next()).value[1]];
    const script = `sleep 0.2; printf x | dd of=${path} bs=1 conv=notrunc 2>/dev/null; kill -CONT ${process.pid}`;
    const writing = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    const closed = once(writing, 'close'); // which may come before the load has heard of it
    const began = performance.now();
    process.kill(process.pid, 'SIGSTOP');
    const rest = async () => {
      for await (const [, tensor] of iterator) tensors.push(tensor);
    };
    await assert.rejects(rest(), { code: 'FILE_CHANGED', path });
    assert.ok(performance.now() - began > Number(seconds) * 500, 'the writer waited');
    await closed;
    for (const tensor of tensors) tensor.dispose();
    await loader.close();
    await nothingHeld();
  },

  /** A lease on a file of an overlay would not know of a writer who has mapped it and closed it. */
  async overlay() {
    const at = (name) => join(folder, name);
    for (const name of ['lower', 'top', 'merged']) fs.mkdirSync(at(name));
    const run = (...command) => assert.equal(spawnSync(command[0], command.slice(1), { stdio: 'inherit' }).status, 0);
    run('mount', '-t', 'tmpfs', 'tmpfs', at('top')); // not every file system can be on top
    for (const name of ['upper', 'work']) fs.mkdirSync(join(at('top'), name));
    const layers = `lowerdir=${at('lower')},upperdir=${at('top')}/upper,workdir=${at('top')}/work`;
    run('mount', '-t', 'overlay', 'overlay', '-o', layers, at('merged'));
    const path = join(at('merged'), 'a.safetensors');
    fs.copyFileSync(writeModel('a', TENSORS, ELEMENTS, 7, 8), path);
    const copied = new ParallelLoader({ files: path, mmap: 'auto' });
    for await (const [, tensor] of copied.iterateWeights()) tensor.dispose();
    await copied.close();
    assert.deepEqual([copied.report.mappedBytes, copied.report.notes.length], [0, 1]);
    assert.match(copied.report.notes[0], /no lease holds up all writers on its file system/);
    run('umount', at('merged'));
    run('umount', at('top'));
    await nothingHeld();
  },

  /** A busy event loop holds no writer up. */
  async busy() {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const tensors = await load(path);
    assert.ok(truncated(path) < 20_000); // spawnSync blocks this thread meanwhile
    expectBytes(tensors);
    for (const tensor of tensors) tensor.dispose();
    await nothingHeld();
  },

  /** What a process that has ended had mapped holds nobody up, and nothing of it is said. */
  async exits(how) {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const ended = spawnSync(process.execPath, [__filename, 'holds', path, how], { encoding: 'utf8' });
    assert.equal(ended.stderr, '');
    assert.deepEqual([ended.status, ended.signal], how === 'kill' ? [null, 'SIGKILL'] : [7, null]);
    truncated(path);
  },
  async holds(path, how) {
    const tensors = await load(path);
    expectBytes(tensors);
    // A writer waits, or has just been served, while the process ends.
    const writing = spawn('sh', ['-c', ': > "$0"', path]);
    writing.unref();
    if (how === 'kill') process.kill(process.pid, 'SIGKILL');
    process.exit(7);
  },

  /** What a worker has mapped goes with it. */
  async worker() {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    for (const how of ['ends', 'terminated']) {
      const worker = new Worker(__filename, { workerData: { how, path } });
      const exited = once(worker, 'exit'); // heard from now on: it may come in one turn with the message
      const buffer = await new Promise((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
      if (how === 'terminated') await worker.terminate();
      await exited;
      assert.ok(new Uint8Array(buffer).every((byte) => byte === 7));
    }
    truncated(path);
    await nothingHeld();
  },

  /** A child made by fork and exec inherits neither the descriptor nor the lease. */
  async spawned() {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const tensors = await load(path);
    const child = spawn('sleep', ['100']);
    for (const tensor of tensors) tensor.dispose();
    await nothingHeld();
    truncated(path);
    child.kill();
  },

  /** Stopped for longer than the kernel makes a writer wait: the writer goes on, and the next loader says so. */
  async stopped(seconds) {
    const path = writeModel('a', TENSORS, ELEMENTS, 7, 8);
    const tensors = await load(path);
    const size = statSync(path).size;
    const script = `sleep 0.2; dd if=/dev/zero of=${path} bs=${size} count=1 conv=notrunc 2>/dev/null; echo written;
      sleep 0.3; kill -CONT ${process.pid}`;
    const writing = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    const began = performance.now();
    process.kill(process.pid, 'SIGSTOP');
    await new Promise((resolve) => writing.on('close', resolve));
    assert.ok(performance.now() - began > Number(seconds) * 500, 'the writer waited');
    // No tensor is half of each: pages are the old ones where they were copied, else the new ones.
    for (const tensor of tensors)
      assert.ok(
        bytesOf(tensor).every((byte) => byte === 0),
        tensor.name,
      );
    for (const tensor of tensors) tensor.dispose();
    const warnings = [];
    const logger = { debug() {}, info() {}, warn: (text) => warnings.push(text) };
    const loader = new ParallelLoader({ files: writeModel('b', 1, 16), logger });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    assert.match(warnings.join(), /was opened for writing while its tensors were mapped/);
    await nothingHeld();
  },
};

async function inWorker({ how, path }) {
  const { parentPort } = require('node:worker_threads');
  const tensors = await load(path);
  const last = await LOADS.lazy(path, true);
  expectBytes([...tensors, ...last.tensors]);
  parentPort.postMessage(new Uint8Array(bytesOf(tensors[0])).buffer);
  if (how === 'terminated') await setTimeout(60_000);
}

if (isMainThread) main(scenarios);
else if (workerData === 'writer') serveWrites();
else void inWorker(workerData);
