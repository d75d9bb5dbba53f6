// A copier of one's own: it reads as it likes, here with a SHA-256 over what was read of each file: npm start
// The loader checks that every byte of every range came; limits, aborts, devices and frameworks work as ever.
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { ParallelLoader, registerCopier, saveFile } from 'fastsafetensors-node';

const PIECE = 1024 * 1024;
const digests = new Map();

async function copy({ path, ranges, destination, signal }) {
  const hash = createHash('sha256');
  const file = await open(path);
  try {
    for (const { fileOffset, length, destOffset } of ranges) {
      for (let done = 0; done < length; ) {
        signal.throwIfAborted(); // the load has failed elsewhere, or was aborted
        const bytes = new Uint8Array(Math.min(length - done, PIECE));
        const { bytesRead } = await file.read(bytes, 0, bytes.length, fileOffset + done);
        if (bytesRead === 0) return; // the file ends here; the loader says which bytes are missing
        hash.update(bytes.subarray(0, bytesRead));
        await destination.write(destOffset + done, bytes.subarray(0, bytesRead));
        done += bytesRead;
      }
    }
    digests.set(path, hash.digest('hex'));
  } finally {
    await file.close();
  }
}

registerCopier('hashing', () => () => ({
  submitIo(request) {
    const pending = copy(request);
    pending.catch(() => {}); // waitIo tells
    return pending;
  },
  waitIo: (pending) => pending,
  close: async () => {},
}));

const path = 'sample.safetensors';
await saveFile({ w: { shape: [2, 2], data: Float32Array.of(1, 2, 3, 4) } }, path);
const loader = new ParallelLoader({ files: path, copier: 'hashing' });
for await (const [name, tensor] of loader.iterateWeights()) console.log(`${name}: ${[...tensor.data].join(' ')}`);
console.log(`by ${loader.report.copier}, sha256 ${digests.values().next().value}`);
await loader.close();
