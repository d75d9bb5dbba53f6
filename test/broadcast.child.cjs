// Ranks of one group on emulated GPUs, with the emulated NCCL: of this process, or each a process of this script.
const { spawn } = require('node:child_process');
const { createHash } = require('node:crypto');
const { mkdirSync, readFileSync, symlinkSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const helpers = require('./support/child-helpers.cjs');
const { assert, folder, main, nccl, ncclUniqueId, nothingHeld, SafeTensorsFileLoader, setTimeout } = helpers;

const RANKS = 4;
const RULES = { '*.whole': -1, '*.part': 0 };

/** Tensors that all ranks have whole, an embedding among them that is larger than a share, and parts. */
function writeModel() {
  const tensors = [
    ['embed.whole', 'BF16', [4001, 256]],
    ['a.part', 'F32', [512, 300]],
    ['a.whole', 'F32', [257]],
    ['b.part', 'U8', [7, 100_003]],
    ['b.whole', 'U8', [3, 5, 7]],
    ['empty.whole', 'F32', [0, 4]],
    ['scalar.whole', 'F32', []],
    ['wide.whole', 'F16', [1, 60_000]],
  ];
  const bytesOf = { BF16: 2, F16: 2, F32: 4, U8: 1 };
  let at = 0;
  const entries = tensors.map(([name, dtype, shape]) => {
    const length = shape.reduce((product, size) => product * size, bytesOf[dtype]);
    at += length;
    return [name, { dtype, shape, data_offsets: [at - length, at] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / 64) * 64 - 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const data = Buffer.alloc(at);
  for (let i = 0, x = 1; i < at; ++i) {
    x = (Math.imul(x, 1664525) + 1013904223) | 0;
    data[i] = x >>> 24;
  }
  const path = join(folder, 'model.safetensors');
  writeFileSync(path, Buffer.concat([length, header, data]));
  return { path, bytes: at, entries: Object.fromEntries(entries), data };
}

/** Small tensors of U8, `count` of `length` bytes each, that differ. */
function writeSmall(name, count, length) {
  const header = Object.fromEntries(
    Array.from({ length: count }, (_, i) => [
      `${name}.${i}`,
      { dtype: 'U8', shape: [length], data_offsets: [i * length, (i + 1) * length] },
    ]),
  );
  const json = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(json.length));
  const bytes = Object.keys(header).map((tensor) => createHash('sha512').update(tensor).digest().subarray(0, length));
  const path = join(folder, `${name}.safetensors`);
  writeFileSync(path, Buffer.concat([size, json, ...bytes]));
  return { path, digests: Object.fromEntries(Object.keys(header).map((tensor, i) => [tensor, digest(bytes[i])])) };
}

/** What rank `rank` must have of a tensor. */
function expected({ entries, data }, name, rank, ranks = RANKS) {
  const {
    shape,
    data_offsets: [begin, end],
  } = entries[name];
  if (!name.endsWith('.part')) return data.subarray(begin, end);
  const block = Math.ceil(shape[0] / ranks);
  const row = (end - begin) / shape[0];
  const [start, stop] = [rank, rank + 1].map((edge) => Math.min(edge * block, shape[0]));
  return data.subarray(begin + start * row, begin + stop * row);
}

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

async function loadRank(path, rank, broadcast, { size = RANKS, rules = RULES, ...options } = {}) {
  const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size, broadcast }, ...options });
  try {
    await loader.addFilenames(path);
    const buffer = await loader.copyFilesToDevice();
    const digests = {};
    for await (const [name, tensor] of buffer.shardedPlan(rules)) {
      digests[name] = digest(await tensor.toHost());
      tensor.dispose();
    }
    return { digests, report: loader.report };
  } finally {
    await loader.close();
  }
}

/** All ranks in this process. */
async function onRanks(use, size = RANKS) {
  const uniqueId = await ncclUniqueId();
  assert.equal(uniqueId.length, 128);
  const ends = Array.from({ length: size }, () => nccl({ uniqueId }));
  try {
    return await Promise.all(ends.map((end, rank) => use(end, rank)));
  } finally {
    await Promise.all(ends.map((end) => end.close()));
  }
}

function checkRank(model, { digests }, rank) {
  assert.deepEqual(Object.keys(digests).sort(), Object.keys(model.entries).sort());
  for (const [name, found] of Object.entries(digests)) assert.equal(found, digest(expected(model, name, rank)), name);
}

const isTold = (pattern, code) => (error) => {
  assert.match(error.message, pattern);
  assert.equal(error.code, code);
  return true;
};

function spawnRank(rank, args, env = {}) {
  const child = spawn(process.execPath, [__filename, 'rank', String(rank), ...args], {
    env: { ...process.env, TMPDIR: folder, ...env }, // one that is killed does not remove its own
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ended = new Promise((resolve) => child.on('close', resolve));
  return { child, ended, line: async () => (await lines.next()).value };
}

main({
  /** One rank: reads the id from its stdin, loads, says what it has, or its error. */
  async rank(rank, path, options) {
    const [uniqueId] = await createInterface({ input: process.stdin })
      [Symbol.asyncIterator]()
      .next()
      .then(({ value }) => [Buffer.from(value, 'hex')]);
    const end = nccl({ uniqueId });
    const { times = 1, ...others } = JSON.parse(options);
    const said = [];
    for (let time = 0; time < times; ++time) {
      try {
        said.push(await loadRank(path, Number(rank), end, others));
      } catch ({ code, message }) {
        said.push({ code, message });
      }
    }
    await end.close();
    await nothingHeld();
    for (const each of said) console.log(JSON.stringify(each));
  },

  async processes() {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const ranks = Array.from({ length: RANKS }, (_, rank) => spawnRank(rank, [model.path, '{"staging":"always"}']));
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    const said = await Promise.all(ranks.map(async ({ line }) => JSON.parse(await line())));
    for (const [rank, each] of said.entries()) checkRank(model, each, rank);
    const sum = (of) => said.reduce((total, { report }) => total + report[of], 0);
    assert.equal(sum('wantedBytes'), model.bytes);
    assert.ok(sum('readBytes') <= 1.02 * model.bytes, `${sum('readBytes')} of ${model.bytes}`);
    const whole = Object.keys(model.entries).filter((name) => name.endsWith('.whole'));
    const wholeBytes = whole.reduce((total, name) => total + expected(model, name, 0).length, 0);
    assert.equal(sum('receivedBytes'), (RANKS - 1) * wholeBytes);
    // Shares are as even as rows allow: the last tensor is one row.
    for (const { report } of said) assert.ok(report.receivedBytes > 0.5 * wholeBytes && report.files === 1);
    for (const { ended } of ranks) assert.equal(await ended, 0);
  },

  async killed() {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const options = JSON.stringify({ stallTimeoutMs: 1500 });
    const ranks = Array.from({ length: RANKS }, (_, rank) =>
      spawnRank(
        rank,
        [model.path, options],
        rank === 2 ? { FST_EMU_NCCL_HANG: String(7 + Math.floor(Math.random() * 6)) } : {},
      ),
    );
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    await setTimeout(700);
    ranks[2].child.kill('SIGKILL');
    const others = ranks.filter((_, rank) => rank !== 2);
    for (const { line, ended } of others) {
      const { code, message } = JSON.parse(await line());
      assert.equal(code, 'STALLED', message);
      assert.match(message, /waited 1500 ms \(stallTimeoutMs\)/);
      assert.equal(await ended, 0);
    }
  },

  async otherIds() {
    const model = writeModel();
    const ids = [await ncclUniqueId(), await ncclUniqueId()];
    const ends = ids.map((uniqueId) => nccl({ uniqueId }));
    const options = { size: 2, stallTimeoutMs: 300 };
    const loads = ends.map((end, rank) =>
      assert.rejects(
        loadRank(model.path, rank, end, options),
        isTold(/to connect with the other ranks: is each of them alive, with the same uniqueId/, 'STALLED'),
      ),
    );
    await Promise.all(loads);
    await assert.rejects(loadRank(model.path, 0, ends[0], options), isTold(/connect with the other ranks/, 'STALLED'));
    const other = isTold(/pg.broadcast is that of cuda:0, and this loader's device is cuda:1/, 'INVALID_ARGUMENT');
    await assert.rejects(loadRank(model.path, 1, ends[0], options), other);
    for (const end of ends) await end.close();
    for (const end of ends) await assert.rejects(loadRank(model.path, 0, end, options), { code: 'CLOSED' });
    await assert.rejects(loadRank(model.path, 0, ends[0], options), { code: 'CLOSED' });
    await nothingHeld();
  },

  /** What ranks want whole differs: only what all want is read once. */
  async differing() {
    const model = writeModel();
    const results = await onRanks((end, rank) =>
      loadRank(model.path, rank, end, {
        rules: { 'a.whole': rank === 1 ? () => null : -1, 'wide.whole': () => -1, '*.part': 0 },
      }),
    );
    for (const [rank, { digests, report }] of results.entries()) {
      assert.deepEqual(
        Object.keys(digests).sort(),
        ['a.part', ...(rank === 1 ? [] : ['a.whole']), 'b.part', 'wide.whole'].sort(),
      );
      for (const [name, found] of Object.entries(digests)) assert.equal(found, digest(expected(model, name, rank)));
      const parts = ['a.part', 'b.part'].reduce((sum, name) => sum + expected(model, name, rank).length, 0);
      const { receivedBytes, wantedBytes } = report;
      assert.equal(receivedBytes + wantedBytes, parts + 120_000 + (rank === 1 ? 0 : 1028));
    }
    assert.equal(results.filter(({ report }) => report.receivedBytes === 0).length, 1);
    await nothingHeld();
  },

  /** asDict and shardedPlan, one after the other and at a time, two loaders on one end, dtype converted. */
  async calls() {
    const model = writeModel();
    await onRanks(async (broadcast, rank) => {
      const loaders = [{}, { dtype: 'F32' }].map(
        (options) =>
          new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast }, ...options }),
      );
      const buffers = [];
      for (const loader of loaders) {
        await loader.addFilenames(model.path);
        buffers.push(await loader.copyFilesToDevice());
      }
      const dict = buffers[0].asDict({ 'embed.whole': -1, 'a.part': 0, 'scalar.whole': -1 });
      const converted = buffers[1].asDict({ 'wide.whole': -1, 'a.whole': -1 });
      for (const [name, tensor] of await dict) {
        assert.equal(digest(await tensor.toHost()), digest(expected(model, name, rank)), name);
        tensor.dispose();
      }
      const alone = await buffers[1].getTensor('wide.whole'); // not collective
      const tensors = await converted;
      assert.deepEqual([...tensors.keys()], ['wide.whole', 'a.whole']);
      assert.equal(tensors.get('wide.whole').dtype, 'F32');
      assert.equal(digest(await tensors.get('wide.whole').toHost()), digest(await alone.toHost()));
      for (const tensor of [alone, ...tensors.values()]) tensor.dispose();
      for (const each of [...buffers, ...loaders]) await each.close();
    });
    await nothingHeld();
  },

  /** A rank that cannot read its share tells the others at once. */
  async unreadable() {
    const model = writeModel();
    const text = readFileSync(model.path);
    await onRanks(async (end, rank) => {
      const copy = join(folder, `rank-${rank}.safetensors`);
      writeFileSync(copy, text);
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast: end } });
      await loader.addFilenames(copy);
      const buffer = await loader.copyFilesToDevice();
      if (rank === 1) writeFileSync(copy, text.subarray(0, 1000));
      await assert.rejects(
        buffer.asDict({ 'embed.whole': -1 }),
        rank === 1 ? { code: 'FILE_CHANGED' } : isTold(/^rank 1 has not read its share/, 'IO_ERROR'),
      );
      // The group is as good as before.
      if (rank !== 1) await buffer.asDict({ 'a.part': 0 }).then((parts) => parts.get('a.part').dispose());
      else await assert.rejects(buffer.asDict({ 'a.part': 0 }), { code: 'FILE_CHANGED' });
      await loader.close();
    });
    await nothingHeld();
  },

  /** Ranks that list the same files in another order. */
  async orders() {
    const files = ['a', 'b', 'c'].map((name) => writeSmall(name, 2, 64));
    const digests = Object.assign({}, ...files.map((file) => file.digests));
    const paths = files.map(({ path }) => path);
    const said = await onRanks(
      (end, rank) => loadRank(rank === 0 ? paths : [...paths].reverse(), rank, end, { size: 2, rules: { '*': -1 } }),
      2,
    );
    for (const each of said) assert.deepEqual(each.digests, digests);
    assert.equal(said[0].report.receivedBytes + said[1].report.receivedBytes, 6 * 64);
    await nothingHeld();
  },

  /** A file of a hub's cache, whose name is its digest: tensors of it are verified as well. */
  async blobs() {
    const model = writeModel();
    const bytes = readFileSync(model.path);
    mkdirSync(join(folder, 'blobs'));
    mkdirSync(join(folder, 'snapshots'));
    writeFileSync(join(folder, 'blobs', digest(bytes)), bytes);
    const link = join(folder, 'snapshots', 'model.safetensors');
    symlinkSync(join('..', 'blobs', digest(bytes)), link);
    const rules = { '*': -1 };
    const said = await onRanks((end, rank) => loadRank(link, rank, end, { rules, checksum: 'require' }));
    for (const { digests } of said) {
      for (const [name, found] of Object.entries(digests))
        assert.equal(found, digest(expected(model, name, 0, 1)), name);
      assert.equal(Object.keys(digests).length, 8);
    }
    await nothingHeld();
  },

  /** A rank without memory for what it gets tells the others at once. */
  async memory(bytes, ...codes) {
    const model = writeModel();
    const id = Buffer.from(await ncclUniqueId()).toString('hex');
    const options = JSON.stringify({ size: 2, rules: { 'embed.whole': -1 }, stallTimeoutMs: 2000, times: 2 });
    const ranks = [0, 1].map((rank) =>
      spawnRank(rank, [model.path, options], rank === 1 ? { FST_EMU_CUDA_MEMORY: bytes } : {}),
    );
    for (const { child } of ranks) child.stdin.end(`${id}\n`);
    const said = [];
    for (const { line, ended } of ranks) {
      for (let time = 0; time < 2; ++time) said.push(JSON.parse(await line()));
      assert.equal(await ended, 0);
    }
    assert.deepEqual(
      said.map(({ code }) => code),
      codes,
      JSON.stringify(said),
    );
  },

  /** A call that is aborted before it is made, or while it waits for its turn, leaves the order of calls as it is. */
  async turns(when) {
    const model = writeModel();
    let start;
    const started = new Promise((resolve) => {
      start = resolve;
    });
    await onRanks(async (end, rank) => {
      if (rank === 0) await started;
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: 2, broadcast: end } });
      await loader.addFilenames(model.path);
      const control = new AbortController();
      const names = ['a.whole', 'b.whole', 'wide.whole'];
      const signals = [undefined, control.signal, undefined];
      const buffers = [];
      for (const signal of signals) buffers.push(await loader.copyFilesToDevice({ signal }));
      if (rank === 1 && when === 'before') control.abort(new Error('enough'));
      const calls = buffers.map((buffer, i) => buffer.asDict({ [names[i]]: -1 }));
      const settled = Promise.allSettled(calls);
      if (rank === 1) {
        await setTimeout(50);
        control.abort(new Error('enough'));
        await assert.rejects(calls[1], { message: 'enough' });
        start();
      }
      const [first, second, third] = await settled;
      const told = rank === 1 ? /^enough$/ : /^rank 1 has not read its share/;
      assert.match(second.reason.message, told);
      for (const [i, { value, reason }] of [first, third].entries()) {
        assert.equal(reason, undefined);
        const name = names[2 * i];
        assert.equal(digest(await value.get(name).toHost()), digest(expected(model, name, rank)), name);
        value.get(name).dispose();
      }
      await loader.close();
    }, 2);
    await nothingHeld();
  },

  /** Limits that are no whole number of milliseconds. */
  async limits() {
    const model = writeModel();
    const said = await onRanks((end, rank) => loadRank(model.path, rank, end, { stallTimeoutMs: Infinity }));
    for (const [rank, each] of said.entries()) checkRank(model, each, rank);
    const alone = nccl({ uniqueId: await ncclUniqueId() });
    const stalled = isTold(/waited 1 ms \(stallTimeoutMs\)/, 'STALLED');
    await assert.rejects(loadRank(model.path, 0, alone, { stallTimeoutMs: 0.5 }), stalled);
    await alone.close();
    await nothingHeld();
  },

  /** Thousands of tensors, whose list is exchanged. */
  async many() {
    const { path, digests } = writeSmall('many', 5000, 5);
    const said = await onRanks((end, rank) => loadRank(path, rank, end, { size: 2, rules: { '*': -1 } }), 2);
    for (const each of said) assert.deepEqual(each.digests, digests);
    await nothingHeld();
  },

  /** The id as other views of its bytes. */
  async views() {
    const model = writeModel();
    const uniqueId = await ncclUniqueId();
    const bytes = new ArrayBuffer(192);
    new Uint8Array(bytes, 32).set(uniqueId);
    const ends = [new DataView(bytes, 32, 128), new Uint16Array(bytes, 32, 64)].map((id) => nccl({ uniqueId: id }));
    new Uint8Array(bytes).fill(0); // theirs from here on
    await Promise.all(ends.map((end, rank) => loadRank(model.path, rank, end, { size: 2, stallTimeoutMs: 5000 })));
    await Promise.all(ends.map((end) => end.close()));
    await nothingHeld();
  },

  /** A consumer that ends early, an aborted signal and a closed loader leave nothing, and take no other rank along. */
  async ending(how) {
    const model = writeModel();
    await onRanks(async (end, rank) => {
      const control = new AbortController();
      const loader = new SafeTensorsFileLoader({ device: `cuda:${rank}`, pg: { rank, size: RANKS, broadcast: end } });
      await loader.addFilenames(model.path);
      const buffer = await loader.copyFilesToDevice({ signal: control.signal });
      let count = 0;
      const use = async () => {
        for await (const [, tensor] of buffer.shardedPlan(RULES)) {
          tensor.dispose();
          ++count;
          if (rank !== 1) continue;
          if (how === 'break') break;
          if (how === 'abort') control.abort(new Error('enough'));
          if (how === 'close') await loader.close();
        }
      };
      if (rank !== 1) {
        await use();
        assert.equal(count, 8);
      } else if (how === 'break') {
        await use();
      } else {
        await assert.rejects(use(), how === 'abort' ? { message: 'enough' } : { code: 'CLOSED' });
      }
      await loader.close();
    });
    await nothingHeld();
  },

  /** Each call of the library fails once, at each of its first calls: a typed error, nothing held, no rank hangs. */
  async injected(call) {
    const model = writeModel();
    const errors = new Map();
    await onRanks(async (end, rank) => {
      try {
        await loadRank(model.path, rank, end, { stallTimeoutMs: 1000 });
      } catch (error) {
        errors.set(rank, error);
      }
    });
    assert.ok(errors.size > 0, 'nothing has failed');
    const codes = [...errors.values()].map(({ code }) => code);
    assert.ok(codes.includes('CUDA_ERROR'), codes.join());
    for (const error of errors.values()) {
      assert.ok(['CUDA_ERROR', 'STALLED'].includes(error.code), String(error));
      if (error.code === 'CUDA_ERROR') assert.ok(error.message.includes(call), error.message);
    }
    await nothingHeld();
  },

  async missing() {
    await assert.rejects(
      ncclUniqueId(),
      isTold(/the NCCL library .* cannot be loaded: .*FASTSAFETENSORS_NCCL_LIB/s, 'COPIER_UNAVAILABLE'),
    );
    const model = writeModel();
    const end = nccl({ uniqueId: new Uint8Array(128) });
    await assert.rejects(loadRank(model.path, 0, end), { code: 'COPIER_UNAVAILABLE' });
    await end.close();
    await nothingHeld();
  },

  async oldLibrary(version) {
    await assert.rejects(
      ncclUniqueId(),
      isTold(new RegExp(`is of version ${version}, expected 2.14 or a later 2.x`), 'COPIER_UNAVAILABLE'),
    );
  },

  /** The real NCCL finds no real driver below it. */
  async realLibrary() {
    const ids = [await ncclUniqueId(), await ncclUniqueId()];
    assert.notDeepEqual(ids[0], ids[1]);
    const end = nccl({ uniqueId: ids[0] });
    const model = writeModel();
    const failed = isTold(/^ncclCommInitRankConfig failed with \d+: /, 'CUDA_ERROR');
    await assert.rejects(loadRank(model.path, 0, end, { stallTimeoutMs: 20_000 }), failed);
    await end.close();
    await nothingHeld();
  },

  async options() {
    const refuses = (options, message) =>
      assert.throws(() => new SafeTensorsFileLoader(options), isTold(message, 'INVALID_ARGUMENT'));
    const pg = { rank: 0, size: 2, broadcast: nccl({ uniqueId: new Uint8Array(128) }) };
    refuses({ pg }, /device: expected that of one GPU, 'cuda:0', as pg.broadcast is given/);
    refuses({ pg, devices: ['cuda:0', 'cuda:1'] }, /device: expected that of one GPU/);
    refuses({ pg, device: 'cuda:0', deviceMemoryBudget: 1e9 }, /deviceMemoryBudget: expected none/);
    refuses({ pg, device: 'cuda:0', copier: 'unified' }, /copier: expected another than 'unified'/);
    refuses({ pg: { rank: 0, size: 2, broadcast: {} }, device: 'cuda:0' }, /pg.broadcast: expected what nccl\(/);
    for (const uniqueId of [undefined, new Uint8Array(127), 'id']) {
      assert.throws(() => nccl({ uniqueId }), {
        code: 'INVALID_ARGUMENT',
        message: /uniqueId: expected the 128 bytes/,
      });
    }
    assert.throws(() => nccl({ uniqueId: new Uint8Array(128), library: '' }), { code: 'INVALID_ARGUMENT' });
    new SafeTensorsFileLoader({ pg: { ...pg, size: 1 } }); // a group of one reads by itself
  },

  /** The process ends while bytes are under way. */
  async exits(ms) {
    const model = writeModel();
    void onRanks((end, rank) => loadRank(model.path, rank, end, { stallTimeoutMs: 60_000 })).catch(() => {});
    await setTimeout(Number(ms));
    process.exit(7);
  },
});
