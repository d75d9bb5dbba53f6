// Streams 10 shards of 100 MB to the emulated GPU, disposing each tensor, with a budget or without; prints seconds.
const { mkdtempSync, openSync, writeSync, ftruncateSync, closeSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { ParallelLoader } = require('../../dist/src/index.js');

const TENSORS = 10;
const BYTES = 10_000_000;

async function main([budget, rounds, only]) {
  const folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-budget-'));
  try {
    const files = Array.from({ length: 10 }, (_, file) => {
      const entries = Array.from({ length: TENSORS }, (_, i) => [
        `${file}.${i}`,
        { dtype: 'U8', shape: [BYTES], data_offsets: [i * BYTES, (i + 1) * BYTES] },
      ]);
      const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)).padEnd(1016));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(header.length));
      const path = join(folder, `${file}.safetensors`);
      const fd = openSync(path, 'w');
      writeSync(fd, Buffer.concat([length, header]));
      ftruncateSync(fd, 8 + header.length + TENSORS * BYTES);
      closeSync(fd);
      return path;
    });
    const seconds = { limited: [], free: [] };
    for (let round = 0; round < Number(rounds); ++round) {
      for (const way of only ? [only] : Object.keys(seconds)) {
        const limit = way === 'limited' ? { deviceMemoryBudget: Number(budget) } : {};
        const loader = new ParallelLoader({ files, device: 'cuda:0', ...limit });
        const began = performance.now();
        let tensors = 0;
        for await (const [, tensor] of loader.iterateWeights()) {
          tensor.dispose();
          ++tensors;
        }
        seconds[way].push((performance.now() - began) / 1000);
        if (tensors !== 10 * TENSORS) throw new Error(`${tensors} tensors`);
        await loader.close();
      }
    }
    const median = (list) => list.sort((a, b) => a - b)[list.length >> 1] ?? 0;
    console.log(JSON.stringify({ limited: median(seconds.limited), free: median(seconds.free) }));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

main(process.argv.slice(2));
