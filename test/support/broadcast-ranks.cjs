// Ranks of one group on emulated GPUs, with the emulated NCCL: of this process, or each in one of its own.
const { spawn } = require('node:child_process');
const { createHash } = require('node:crypto');
const { writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const { assert, folder, nccl, ncclUniqueId, SafeTensorsFileLoader } = require('./child-helpers.cjs');

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

/** A rank in a process of its own (broadcast-rank.cjs), which waits for the id on its stdin. `args`: path, options. */
function spawnRank(rank, args, env = {}) {
  const child = spawn(process.execPath, [join(__dirname, 'broadcast-rank.cjs'), 'load', String(rank), ...args], {
    env: { ...process.env, TMPDIR: folder, ...env }, // one that is killed does not remove its own
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ended = new Promise((resolve) => child.on('close', resolve));
  return { child, ended, line: async () => (await lines.next()).value };
}

module.exports = {
  checkRank,
  digest,
  expected,
  isTold,
  loadRank,
  onRanks,
  RANKS,
  RULES,
  spawnRank,
  writeModel,
  writeSmall,
};
