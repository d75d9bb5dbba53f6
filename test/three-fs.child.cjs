// Loads through 3FS: the script's folder is the mount, the emulator of the client library serves it and ends the
// process with a reason when it is misused or when anything is left at exit.
const {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} = require('node:fs');
const { once } = require('node:events');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { Worker } = require('node:worker_threads');
const {
  assert,
  copierAvailability,
  createCopierConstructor,
  dropIdleThreeFs,
  emulators,
  extractMountPoint,
  fastsafeOpen,
  folder,
  getHf3fsLibPath,
  idleThreeFs,
  main,
  nativeMetrics,
  nothingHeld,
  ParallelLoader,
  ParallelThreeFSLoader,
  SafeTensorsFileLoader,
  ThreeFSLoader,
  setTimeout,
} = require('./support/child-helpers.cjs');

const device = process.env.TEST_DEVICE ?? 'cpu';
const iovs = join(folder, '3fs-virt', 'iovs');
const shared = () => readdirSync('/dev/shm').filter((name) => /^(hf3fs-iov-|sem\.hf3fs)/.test(name));
const before = shared();
/** Names that this process left in /dev/shm; those of others come and go. */
async function leftInShm() {
  let left = shared().filter((name) => !before.includes(name));
  for (let i = 0; i < 400 && left.length > 0; ++i) {
    await setTimeout(5);
    const now = shared();
    left = left.filter((name) => now.includes(name));
  }
  return left;
}

/** The byte at `offset` of each file's data: not periodic in any block. */
const byteAt = (offset, seed) => (offset * 31 + (offset >> 9) * 7 + seed) & 255;

/** A file of U8 tensors of these lengths. */
function write(name, lengths, seed = 0) {
  let end = 0;
  const entries = lengths.map((length, i) => {
    const begin = end;
    end += length;
    return `"${name}.${i}":{"dtype":"U8","shape":[${length}],"data_offsets":[${begin},${end}]}`;
  });
  const header = Buffer.from(`{${entries.join(',')}}`);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(header.length));
  const data = Buffer.alloc(end);
  for (let i = 0; i < end; ++i) data[i] = byteAt(i, seed);
  const path = join(folder, `${name}.safetensors`);
  writeFileSync(path, Buffer.concat([size, header, data]));
  return { path, begin: 8 + header.length, lengths, names: lengths.map((_, i) => `${name}.${i}`) };
}

async function same(tensor, file, i, bytes = readFileSync(file.path)) {
  const begin = file.begin + file.lengths.slice(0, i).reduce((a, b) => a + b, 0);
  const expected = bytes.subarray(begin, begin + file.lengths[i]);
  assert.ok(Buffer.from(await tensor.toHost()).equals(expected), `${tensor.name} has wrong bytes`);
}

/** Once what is kept for the next loader has been given back. */
async function nothingLeft() {
  await nothingHeld();
  await dropIdleThreeFs();
  assert.deepEqual(idleThreeFs(), { rings: 0, bytes: 0 });
  assert.deepEqual(await leftInShm(), []);
  // A daemon that died took the folder with it.
  assert.deepEqual(existsSync(iovs) ? readdirSync(iovs) : [], []);
}

const LENGTHS = [1, 0, 4095, 3_145_745, 255, 0, 257, 2_097_152, 100_001];

main({
  async everyLoader() {
    mkdirSync(iovs, { recursive: true });
    const shards = [0, 1, 2, 3].map((i) => write(`s${i}`, LENGTHS, i));
    const files = shards.map(({ path }) => path);
    const find = (name) => shards.find(({ names }) => names.includes(name));
    for (const options of [
      {},
      { bufferSize: 1 << 20, entries: 16 },
      { order: 'ready', ioDepth: 0, mountPoint: folder },
    ]) {
      const loader = new ParallelThreeFSLoader({ files, device, ...options });
      let tensors = 0;
      for await (const [name, tensor] of loader.iterateWeights()) {
        await same(tensor, find(name), find(name).names.indexOf(name));
        tensor.dispose();
        ++tensors;
      }
      assert.equal(tensors, files.length * LENGTHS.length);
      assert.equal(loader.report.copier, '3fs');
      assert.ok(loader.report.maxInFlight > 1, `${loader.report.maxInFlight} reads in flight`);
      assert.deepEqual(loader.report.fallbacks, []);
      await loader.close();
    }
    const single = new ThreeFSLoader({ device });
    await single.addFilenames({ 0: files });
    assert.ok(single.estimate().stagingBytes > 0);
    const buffers = await single.copyFilesToDevice();
    for (const shard of shards)
      for (const [i, name] of shard.names.entries()) {
        const tensor = await buffers.getTensor(name);
        await same(tensor, shard, i);
        tensor.dispose();
      }
    await buffers.close();
    await single.close();
    const opened = await fastsafeOpen(files, { device, copier: '3fs' });
    const tensor = await opened.getTensor('s2.3');
    await same(tensor, shards[2], 3);
    tensor.dispose();
    await opened.close();
    await nothingLeft();
  },

  /** The load rejects with this code, and everything is given back. */
  async fails(code, text = '', options = '{}') {
    mkdirSync(iovs, { recursive: true });
    const { path } = write('data', [16 << 20, 5]);
    const loader = new ParallelThreeFSLoader({ files: path, device, ...JSON.parse(options) });
    const load = async () => {
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    };
    await assert.rejects(load, (error) => {
      assert.equal(error.code, code, error.message);
      assert.ok(error.message.includes(text), error.message);
      return true;
    });
    await loader.close();
    await nothingLeft();
  },

  /** /dev/shm with every number of free pages around what buffer and ring take: loaded, or an error with a remedy. */
  async shmEdges() {
    mkdirSync(iovs, { recursive: true });
    const shard = write('data', [300_000, 5]);
    const filler = '/dev/shm/filler';
    const outcomes = [];
    for (let pages = 0; pages <= 16 + 3 + 64; ++pages) {
      rmSync(filler, { force: true });
      const { bavail, bsize } = statfsSync('/dev/shm');
      writeFileSync(filler, Buffer.alloc((bavail - pages) * bsize));
      const loader = new ParallelThreeFSLoader({ files: shard.path, device, bufferSize: 16 * 4096, entries: 8 });
      try {
        for await (const [name, tensor] of loader.iterateWeights()) {
          await same(tensor, shard, Number(name.split('.')[1]));
          tensor.dispose();
        }
        outcomes.push('loaded');
      } catch (error) {
        assert.equal(error.code, 'OUT_OF_HOST_MEMORY', error.message);
        for (const text of [/ of \d+ bytes/, /\d+ free/, /remount,size/]) assert.match(error.message, text);
        outcomes.push('refused');
      }
      await loader.close();
      assert.deepEqual(await leftInShm(), []);
    }
    rmSync(filler);
    const first = outcomes.indexOf('loaded');
    assert.ok(first >= 16 && first <= 16 + 4, `loaded from ${first} free pages on`);
    assert.ok(
      outcomes.slice(first).every((outcome) => outcome === 'loaded'),
      outcomes.join(' '),
    );
    await nothingLeft();
  },

  /** The file changes between header and data. */
  async changes() {
    mkdirSync(iovs, { recursive: true });
    for (const change of [(path) => utimesSync(path, 1, 1), (path) => truncateSync(path, statSync(path).size - 1)]) {
      const { path } = write('data', [5 << 20]);
      const loader = new ThreeFSLoader({ device });
      await loader.addFilenames(path);
      change(path);
      await assert.rejects(loader.copyFilesToDevice(), { code: 'FILE_CHANGED', path });
      await loader.close();
    }
    await nothingLeft();
  },

  /** What is registered is the descriptor that the header was read through; the library adds one of its own. */
  async sameDescriptors() {
    mkdirSync(iovs, { recursive: true });
    const shards = Array.from({ length: 6 }, (_, i) => write(`s${i}`, [3 << 20], i));
    const descriptorsOf = (path) =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`) === path;
        } catch {
          return false;
        }
      });
    const loader = new ThreeFSLoader({ device });
    await loader.addFilenames(shards.map(({ path }) => path));
    const kept = shards.map(({ path }) => descriptorsOf(path));
    assert.deepEqual(
      kept.map(({ length }) => length),
      shards.map(() => 1),
    );
    let done = false;
    const loading = loader.copyFilesToDevice().finally(() => {
      done = true;
    });
    let registered = 0;
    while (!done) {
      for (const [i, { path }] of shards.entries()) {
        const now = descriptorsOf(path);
        if (now.length < 2) continue;
        ++registered;
        assert.equal(now.length, 2);
        assert.ok(now.includes(kept[i][0]), `${path}: ${now} are open, its header was read through ${kept[i]}`);
      }
      await setTimeout(1);
    }
    assert.ok(registered > 0);
    await (await loading).close();
    await loader.close();
    assert.deepEqual(
      shards.flatMap(({ path }) => descriptorsOf(path)),
      [],
    );
    await nothingLeft();
  },

  /** 3FS has no holes; an ordinary file system, as the one under the emulated mount is, fills them with zeros. */
  async holes() {
    mkdirSync(iovs, { recursive: true });
    const file = write('holes', [3 << 20, 5 << 20]);
    const { size } = statSync(file.path);
    truncateSync(file.path, file.begin + (1 << 20));
    truncateSync(file.path, size);
    const load = async (copier) => {
      const loader = new ParallelLoader({ files: file.path, device, copier });
      try {
        for await (const [name, tensor] of loader.iterateWeights()) {
          await same(tensor, file, file.names.indexOf(name));
          tensor.dispose();
        }
      } finally {
        await loader.close();
      }
    };
    // Reads of both tensors are in flight, and any of those that lie in the hole may be answered first.
    await assert.rejects(load('3fs'), (error) => {
      assert.ok(error.offset >= file.begin + (1 << 20), error.message);
      const tensor = error.offset < file.begin + (3 << 20) ? 'holes.0' : 'holes.1';
      assert.deepEqual([error.code, error.path, error.tensor], ['SHORT_READ', file.path, tensor], error.message);
      return true;
    });
    await load('nogds');
    await nothingLeft();
  },

  async elsewhere() {
    const { path, lengths } = write('data', [5, 1 << 20]);
    const loader = new ThreeFSLoader({ device });
    await loader.addFilenames(path);
    await assert.rejects(loader.copyFilesToDevice(), (error) => {
      assert.equal(error.code, 'NOT_3FS');
      assert.equal(error.path, path);
      assert.ok(error.message.includes(path) && / on \//.test(error.message), error.message);
      return true;
    });
    await loader.close();
    assert.throws(() => extractMountPoint(path), { code: 'NOT_3FS' });
    assert.throws(() => extractMountPoint(''), { code: 'INVALID_ARGUMENT' });

    const warnings = [];
    const logger = { debug() {}, info() {}, warn: (message) => warnings.push(message) };
    const opted = new ParallelThreeFSLoader({ files: path, device, fallback: 'nogds', logger });
    let tensors = 0;
    for await (const [, tensor] of opted.iterateWeights()) {
      tensor.dispose();
      ++tensors;
    }
    assert.equal(tensors, lengths.length);
    assert.equal(opted.report.copier, 'nogds');
    assert.equal(opted.report.fallbacks.length, 1);
    const { reason, ...fallback } = opted.report.fallbacks[0];
    assert.deepEqual(fallback, { path, from: '3fs', to: 'nogds' });
    assert.ok(reason.includes('3FS'));
    assert.equal(warnings.length, 1);
    await opted.close();
    await nothingHeld();
  },

  /** One of two files is not on the mount: both are read in another way, and the report says so of each once. */
  async neighbours() {
    mkdirSync(iovs, { recursive: true });
    const elsewhere = mkdtempSync(join(tmpdir(), 'not-3fs-'));
    try {
      const on = write('on', [7, 4097]);
      const off = write('off', [300]);
      const away = join(elsewhere, 'off.safetensors');
      renameSync(off.path, away);
      const loader = new ThreeFSLoader({ device, fallback: 'nogds', logger: { debug() {}, info() {}, warn() {} } });
      await loader.addFilenames([on.path, away]);
      const buffers = await loader.copyFilesToDevice();
      for (const [file, i, name] of [
        [on, 0, 'on.0'],
        [on, 1, 'on.1'],
        [{ ...off, path: away }, 0, 'off.0'],
      ]) {
        const tensor = await buffers.getTensor(name);
        await same(tensor, file, i);
        tensor.dispose();
      }
      const { copier, fallbacks } = loader.report;
      const listed = fallbacks.map(({ path, from, to }) => [path, from, to]);
      assert.equal(copier, 'nogds');
      assert.deepEqual(listed, [
        [on.path, '3fs', 'nogds'],
        [away, '3fs', 'nogds'],
      ]);
      assert.ok(fallbacks[0].reason.includes(`together with ${away}`), fallbacks[0].reason);
      assert.ok(/3FS/.test(fallbacks[1].reason) && !fallbacks[1].reason.includes('together'), fallbacks[1].reason);
      await buffers.close();
      await loader.close();

      // By itself it is read through 3FS; a blank mount point is the mount of the files.
      const alone = new ParallelThreeFSLoader({ files: on.path, device, mountPoint: ' ', fallback: 'nogds' });
      for await (const [, tensor] of alone.iterateWeights()) tensor.dispose();
      assert.deepEqual([alone.report.copier, alone.report.fallbacks], ['3fs', []]);
      await alone.close();
      await nothingLeft();
    } finally {
      rmSync(elsewhere, { recursive: true });
    }
  },

  async chosen() {
    const away = write('away', [7]);
    const load = async (files) => {
      const loader = new ParallelLoader({ files, device });
      for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
      await loader.close();
      return loader.report.copier;
    };
    assert.equal(await load(away.path), 'nogds');
    mkdirSync(iovs, { recursive: true });
    assert.equal(extractMountPoint(join(folder, 'absent', 'file')), folder);
    assert.equal(await load(away.path), '3fs');
    assert.equal(getHf3fsLibPath(), emulators.hf3fs.path);
    const { available, library, remedy } = await copierAvailability('3fs', device);
    // Also where the limit of locked memory may hinder it: `reason` says that.
    assert.equal(remedy, undefined);
    assert.deepEqual([available, library], [true, emulators.hf3fs.path]);
    // The copier by hand.
    const opened = await fastsafeOpen(away.path, { device });
    await opened.close();
    assert.equal(typeof createCopierConstructor('3fs', device, {}), 'function');
    await nothingLeft();
  },

  async manyFiles(count) {
    mkdirSync(iovs, { recursive: true });
    const shards = Array.from({ length: Number(count) }, (_, i) => write(`f${i}`, [i % 37, 1], i));
    const loader = new ParallelThreeFSLoader({ files: shards.map(({ path }) => path), device });
    let tensors = 0;
    for await (const [name, tensor] of loader.iterateWeights()) {
      const [file, i] = name.slice(1).split('.').map(Number);
      await same(tensor, shards[file], i);
      tensor.dispose();
      ++tensors;
    }
    assert.equal(tensors, 2 * shards.length);
    await loader.close();
    await nothingLeft();
  },

  /** With hardly any descriptors: says `loaded`, or the error. */
  async fewDescriptors(copier, count) {
    mkdirSync(iovs, { recursive: true });
    const shards = Array.from({ length: Number(count) }, (_, i) => write(`f${i}`, [70_001, 1], i));
    const contents = shards.map(({ path }) => readFileSync(path)); // no descriptor may be left for it later
    const files = shards.map(({ path }) => path);
    const loader = new ParallelLoader({ files, device, copier, ...(copier === '3fs' && { bufferSize: 1 << 16 }) });
    try {
      for await (const [name, tensor] of loader.iterateWeights()) {
        const [file, i] = name.slice(1).split('.').map(Number);
        await same(tensor, shards[file], i, contents[file]);
        tensor.dispose();
      }
      console.log('loaded');
    } catch (error) {
      console.log(error.code, error.message);
    }
    await loader.close();
    await nothingHeld();
  },

  /** Ring and buffer are made while headers are read; where one of these is bad they are there until close(). */
  async beginsEarly() {
    mkdirSync(iovs, { recursive: true });
    const { path } = write('data', [16 << 20]);
    const bad = join(folder, 'bad.safetensors');
    writeFileSync(bad, 'much too short to be the header of anything');
    const loader = new ParallelThreeFSLoader({ files: [path, bad], device });
    await assert.rejects(loader.iterateWeights().next(), { code: 'HEADER_TOO_LARGE' });
    for (let i = 0; nativeMetrics().rings === 0 && i < 2000; ++i) await setTimeout(5);
    assert.equal(nativeMetrics().rings, 1);
    await loader.close();
    await nothingLeft();
  },

  /** The client library is loaded as soon as a loader is made that will need it: before it reads, or checks files. */
  async loadsLibraryEarly(kind) {
    const loaded = () => readFileSync('/proc/self/maps', 'latin1').includes(getHf3fsLibPath());
    const options = { files: join(folder, 'absent.safetensors'), device };
    const own = new ParallelThreeFSLoader({ ...options, reader: { readChunked: async () => 0 } });
    await setTimeout(50);
    assert(!loaded());
    await own.close();
    const made =
      kind === 'any' ? new ParallelLoader({ ...options, copier: '3fs' }) : new ParallelThreeFSLoader(options);
    for (let i = 0; !loaded() && i < 2000; ++i) await setTimeout(5);
    assert(loaded());
    await made.close();
    await nothingLeft();
  },

  /** The buffer's pages are allocated before anything of the files is known; what no load takes is given back. */
  async reservesEarly() {
    mkdirSync(iovs, { recursive: true });
    const shard = write('data', [3 << 20, 70_001, 5]);
    const inodes = () =>
      readdirSync('/proc/self/fd').flatMap((fd) => {
        let target = '';
        try {
          target = readlinkSync(`/proc/self/fd/${fd}`);
        } catch {} // the listing's own
        return /^\/dev\/shm\/#(\d+) /.exec(target)?.[1] ?? [];
      });
    const reserved = () => {
      for (let i = 0; inodes().length === 0 && i < 2000; ++i)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
      return inodes();
    };
    const absent = new ParallelThreeFSLoader({ files: join(folder, 'absent.safetensors.index.json'), device });
    const failing = absent.iterateWeights().next();
    assert.equal(reserved().length, 1); // the event loop has not had a turn since
    await assert.rejects(failing, { code: 'IO_ERROR' });
    await absent.close();
    assert.deepEqual(inodes(), []);

    const closed = new ParallelThreeFSLoader({ files: shard.path, device });
    const pending = assert.rejects(closed.iterateWeights().next(), { code: 'CLOSED' });
    await closed.close();
    assert.deepEqual(inodes(), []);
    await pending;
    await dropIdleThreeFs();

    const loader = new ParallelThreeFSLoader({ files: shard.path, device });
    const weights = loader.iterateWeights();
    const first = weights.next();
    const [inode] = reserved();
    const [, tensor] = (await first).value;
    assert.match(readFileSync('/proc/self/maps', 'latin1'), new RegExp(` ${inode} +/dev/shm/`)); // it is the buffer
    tensor.dispose();
    for await (const [, other] of weights) other.dispose();
    await loader.close();
    const next = new ParallelThreeFSLoader({ files: shard.path, device });
    const again = next.iterateWeights().next();
    assert.deepEqual(inodes(), []); // the buffer that is kept will do
    (await again).value[1].dispose();
    assert.deepEqual(inodes(), []);
    await next.close();
    await nothingLeft();
  },

  /** Given up in the middle; close() waits for what is in flight. */
  async abandoned() {
    mkdirSync(iovs, { recursive: true });
    const { path } = write('data', [16 << 20]);
    for (const wait of [0, 1, 5, 20, 60]) {
      const abort = new AbortController();
      const loader = new ParallelThreeFSLoader({ files: path, device, signal: abort.signal });
      const load = loader.iterateWeights().next();
      void setTimeout(wait).then(() => abort.abort());
      await assert.rejects(load, { name: 'AbortError' });
      await loader.close();
    }
    await nothingLeft();
  },

  /** Says its folder once reads are in flight, and waits to be killed. */
  async killed() {
    mkdirSync(iovs, { recursive: true });
    const { path } = write('data', [16 << 20]);
    const loader = new ParallelThreeFSLoader({ files: path, device });
    const load = loader.iterateWeights().next();
    while (nativeMetrics().rings === 0 || nativeMetrics().inFlight === 0) await setTimeout(1);
    assert.ok(readdirSync(iovs).length >= 2);
    console.log(folder);
    await load;
  },

  /** The next loader of the same kind reads through ring and buffer of the one before, in whichever thread it is. */
  async keepsForTheNext(end) {
    mkdirSync(iovs, { recursive: true });
    const shard = write('data', [3 << 20, 70_001, 5]);
    const load = async (options = {}) => {
      const loader = new ParallelThreeFSLoader({ files: shard.path, device, ...options });
      for await (const [name, tensor] of loader.iterateWeights()) {
        await same(tensor, shard, shard.names.indexOf(name));
        tensor.dispose();
      }
      assert.equal(nativeMetrics().rings, 1);
      await loader.close();
      await nothingHeld();
    };
    const inWorker = async (terminate) => {
      const code = `const { parentPort, workerData } = require('node:worker_threads');
        const { ParallelThreeFSLoader } = require(workerData.helpers);
        (async () => {
          for (;;) {
            const loader = new ParallelThreeFSLoader(workerData.options);
            for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
            await loader.close();
            parentPort.postMessage('loaded');
            if (!workerData.terminate) break;
          }
        })();`;
      const helpers = join(__dirname, 'support', 'child-helpers.cjs');
      const options = { files: shard.path, device };
      const worker = new Worker(code, { eval: true, workerData: { helpers, options, terminate } });
      const exited = once(worker, 'exit');
      await once(worker, 'message');
      if (terminate) await worker.terminate();
      await exited;
      await nothingHeld();
    };
    await load();
    const links = readdirSync(iovs);
    assert.equal(links.length, 2);
    assert.deepEqual(idleThreeFs(), { rings: 1, bytes: 48 << 20 });
    const linksAfter = async (loading) => {
      await loading;
      return readdirSync(iovs);
    };
    assert.deepEqual(await linksAfter(load()), links);
    assert.deepEqual(await linksAfter(inWorker(false)), links);
    assert.deepEqual(await linksAfter(load()), links);
    await inWorker(true); // in the middle of a load: what it had is as usable as any
    await load();
    assert.equal(readdirSync(iovs).length, 2);
    await load({ bufferSize: 1 << 20 });
    assert.equal(idleThreeFs().rings, 2);
    await dropIdleThreeFs();
    assert.deepEqual(readdirSync(iovs), []);
    await load();
    assert.equal(idleThreeFs().rings, 1);
    if (end === 'exit') {
      console.log('ok');
      process.exit(0);
    }
  },

  /** What is kept leaves other processes room in /dev/shm. */
  async keepsRoom(expected) {
    mkdirSync(iovs, { recursive: true });
    const { path } = write('data', [300_000]);
    const loader = new ParallelThreeFSLoader({ files: path, device });
    for await (const [, tensor] of loader.iterateWeights()) tensor.dispose();
    await loader.close();
    assert.equal(idleThreeFs().rings, Number(expected));
    // One of another kind, for which there is room only without what is kept.
    const { bavail, bsize } = statfsSync('/dev/shm');
    const large = new ParallelThreeFSLoader({ files: path, device, bufferSize: bavail * bsize + (8 << 20) });
    const loading = large.iterateWeights().next();
    if (Number(expected) > 0) (await loading).value[1].dispose();
    else await assert.rejects(loading, { code: 'OUT_OF_HOST_MEMORY' });
    await large.close();
    await nothingLeft();
  },

  async ownReader() {
    const shard = write('own', [5, 0, 4096, 70_001]);
    const bytes = readFileSync(shard.path);
    const reader = {
      async readChunked(path, destination, fileOffset, length) {
        assert.equal(path, shard.path);
        assert.equal(destination.byteLength, length);
        assert.equal(typeof destination.pointer, 'bigint');
        await destination.write(0, bytes.subarray(fileOffset, fileOffset + length));
        return length;
      },
    };
    const loader = new ThreeFSLoader({ device, reader });
    await loader.addFilenames(shard.path);
    const buffers = await loader.copyFilesToDevice();
    for (const [i, name] of shard.names.entries()) {
      const tensor = await buffers.getTensor(name);
      await same(tensor, shard, i);
      tensor.dispose();
    }
    await buffers.close();
    await loader.close();
    for (const [result, code] of [
      [3, 'SHORT_READ'],
      [-5, 'IO_ERROR'],
      [undefined, 'IO_ERROR'],
    ]) {
      const short = new ParallelThreeFSLoader({
        files: shard.path,
        device,
        reader: { readChunked: async () => result },
      });
      await assert.rejects(short.iterateWeights().next(), { code, path: shard.path });
      await short.close();
    }
    const own = new SafeTensorsFileLoader({ device });
    await own.close();
    assert.throws(() => new ThreeFSLoader({ reader: {} }), { code: 'INVALID_ARGUMENT' });
    assert.throws(() => new ThreeFSLoader({ copier: 'nogds' }), { code: 'INVALID_ARGUMENT' });
    await nothingHeld();
  },
});
