import { readFileSync } from 'node:fs';

/** What a shared library asks of the system that loads it, as `readelf -dV` shows it. */
export interface ElfNeeds {
  readonly machine: 'x64' | 'arm64';
  /** DT_NEEDED: names of libraries. */
  readonly libraries: string[];
  /** Versions of symbols, as "GLIBC_2.28". */
  readonly versions: string[];
  /** Names that it shows to others, and those that others have to bring. */
  readonly exported: string[];
  readonly imported: string[];
  /** Of the segments that are mapped: pages larger than this cannot load it. */
  readonly pageBytes: number;
  /** Whether it has sections of debug information or a symbol table. */
  readonly isStripped: boolean;
}

const PT_LOAD = 1;
const DT_NEEDED = 1;
const SHT_SYMTAB = 2;
const SHT_DYNAMIC = 6;
const SHT_DYNSYM = 11;
const SHT_GNU_VERNEED = 0x6ffffffe;
const MACHINES: Record<number, ElfNeeds['machine']> = { 62: 'x64', 183: 'arm64' };

/** Reads a 64-bit little-endian ELF file (elf(5)). */
export function elfNeeds(path: string): ElfNeeds {
  const file = readFileSync(path);
  if (file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) throw new Error(`${path}: no ELF64`);
  const machine = MACHINES[file.readUInt16LE(18)];
  if (!machine) throw new Error(`${path}: machine ${file.readUInt16LE(18)}`);
  const u64 = (at: number) => Number(file.readBigUInt64LE(at));
  const text = (at: number) => file.toString('latin1', at, file.indexOf(0, at));

  let pageBytes = Number.POSITIVE_INFINITY;
  for (let i = 0; i < file.readUInt16LE(56); ++i) {
    const at = u64(32) + i * file.readUInt16LE(54);
    if (file.readUInt32LE(at) === PT_LOAD) pageBytes = Math.min(pageBytes, u64(at + 48));
  }

  const sections = Array.from({ length: file.readUInt16LE(60) }, (_, i) => {
    const at = u64(40) + i * file.readUInt16LE(58);
    const [type, link] = [file.readUInt32LE(at + 4), file.readUInt32LE(at + 40)];
    return { type, link, offset: u64(at + 24), size: u64(at + 32) };
  });
  const libraries: string[] = [];
  const versions = new Set<string>();
  const exported: string[] = [];
  const imported: string[] = [];
  for (const { type, link, offset, size } of sections) {
    const strings = sections[link]?.offset ?? 0;
    if (type === SHT_DYNAMIC) {
      for (let at = offset; at < offset + size; at += 16)
        if (u64(at) === DT_NEEDED) libraries.push(text(strings + u64(at + 8)));
    } else if (type === SHT_DYNSYM) {
      for (let at = offset + 24; at < offset + size; at += 24)
        (file.readUInt16LE(at + 6) === 0 ? imported : exported).push(text(strings + file.readUInt32LE(at)));
    } else if (type === SHT_GNU_VERNEED) {
      for (let need = offset, more = true; more; need += file.readUInt32LE(need + 12)) {
        let at = need + file.readUInt32LE(need + 8);
        for (let left = file.readUInt16LE(need + 2); left > 0; --left, at += file.readUInt32LE(at + 12))
          versions.add(text(strings + file.readUInt32LE(at + 8)));
        more = file.readUInt32LE(need + 12) !== 0;
      }
    }
  }
  const isStripped = !sections.some(({ type }) => type === SHT_SYMTAB);
  return { machine, libraries, versions: [...versions], exported: exported.sort(), imported, pageBytes, isStripped };
}
