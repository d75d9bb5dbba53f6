import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** F32 tensors of equal size, their data at multiples of 64; the paths of so many files. */
export function writeFiles(
  folder: string,
  { files, tensors }: { files: number; tensors: number },
  bytes: number,
): string[] {
  const elements = Math.floor(bytes / files / tensors / 4);
  return Array.from({ length: files }, (_, file) => {
    const entries = Array.from({ length: tensors }, (_, i) => {
      const offsets = [i * elements * 4, (i + 1) * elements * 4];
      return [`${file}.${i}`, { dtype: 'F32', shape: [elements], data_offsets: offsets }];
    });
    const json = JSON.stringify(Object.fromEntries(entries));
    const header = Buffer.from(json.padEnd(Math.ceil((8 + json.length) / 64) * 64 - 8));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const path = join(folder, `${file}.safetensors`);
    writeFileSync(path, Buffer.concat([length, header, Buffer.alloc(elements * tensors * 4, 0x3f)]));
    return path;
  });
}
