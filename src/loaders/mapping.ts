import { counted } from '../base/counted.js';
import type { CallWatch } from '../base/waiting.js';
import { native, translated } from '../native/addon.js';
import type { NativeEngine, NativeMappedFile } from '../native/core.js';
import { identitiesOf } from '../safetensors/metadata.js';
import { mappedPlan } from '../transfer/mapped-plan.js';
import type { Plan } from '../transfer/plan.js';
import type { LoaderOptions } from './options.js';

/** Files are opened, looked at and mapped in so many calls at a time. */
const CALLS = 8;

/** Bytes that are wanted of a file, from which on 'auto' maps it: for fewer, a read takes less time than a mapping. */
export const MAPPED_FROM = 256 * 1024;

/** How the notes of a report call what protects a mapped file. */
const PROTECTED: Readonly<Record<string, string>> = {
  lease: 'mapped under a read lease: who writes to it waits until its tensors were copied',
  immutable: 'mapped: nothing can change it',
  nothing: 'mapped, and nothing protects it: a writer changes its tensors, and one who cuts it short ends this process',
};
/** Why a file is copied, where the user could do something about it and has not asked for notes. */
const NOTED = /open for writing|another user/;

/** A plan whose tensors may be views of mapped files. */
export interface MappedPlan {
  readonly plan: Plan;
  /** For the report. */
  readonly notes: readonly string[];
  /** Drops the files; allocations over them keep theirs. To be called when the load has started, or failed to. */
  release(): void;
}

/**
 * Maps a plan's files where `mmap` says so. Rejects with FILE_CHANGED and IO_ERROR, and as `watch` limits. Files that
 * are mapped when the caller waits no longer are released when they are collected.
 */
export async function mapFiles(
  plan: Plan,
  engine: NativeEngine,
  { mmap, framework, maxBytesPerSecond }: LoaderOptions,
  watch: CallWatch,
  allocationBytes?: number,
): Promise<MappedPlan> {
  const wanted = mmap ?? (framework ? false : 'auto');
  const unchanged = (notes: string[] = []): MappedPlan => ({ plan, notes, release() {} });
  if (wanted === false || !plan.mappable || plan.bytes === 0) return unchanged();
  // What is mapped is not read, and nothing would hold it back.
  if (wanted === 'auto' && maxBytesPerSecond !== undefined) return unchanged();
  if (!native().mapsFiles(engine))
    return unchanged(mmap ? ['copied, not mapped: only what plain reads bring into host memory can be mapped'] : []);
  const ranges = await plan.rangesOfFiles();
  const files = plan.headers;
  const least = wanted === true ? 1 : MAPPED_FROM;
  const listed = [...files.keys()].filter((file) => ranges[2 * file + 1]! - ranges[2 * file]! >= least);
  const mapped: (NativeMappedFile | null)[] = new Array(files.length).fill(null);
  const texts: string[] = [];
  const release = (): void => {
    for (const file of mapped) if (file) native().releaseMapping(file);
  };
  const part = Math.max(1, Math.ceil(listed.length / CALLS));
  const calls = Array.from({ length: Math.ceil(listed.length / part) }, async (_, call) => {
    const these = listed.slice(call * part, (call + 1) * part);
    const theirRanges = Float64Array.from(
      { length: 2 * these.length },
      (_, i) => ranges[2 * these[i >> 1]! + (i & 1)]!,
    );
    const paths = these.map((file) => files[file]!.path);
    const identities = identitiesOf(these.map((file) => files[file]!.identity!));
    const found = await watch.call('the pages of', paths[0]!, () =>
      translated(native().mapFiles(paths, identities, theirRanges, wanted === true)),
    );
    for (let i = 0; i < these.length; ++i) {
      mapped[these[i]!] = found.files[i]!;
      texts[these[i]!] = found.texts[i]!;
    }
  });
  const failed = (await Promise.allSettled(calls)).find((call) => call.status === 'rejected');
  if (failed) {
    release();
    throw failed.reason;
  }
  const notes = notesOf(
    listed.map((file) => [files[file]!.path, mapped[file] ? PROTECTED[texts[file]!]! : copied(texts[file]!)]),
  );
  const placed = mapped.some((file) => file) ? await mappedPlan(plan, mapped, allocationBytes) : plan;
  return { plan: placed, notes: mmap ? notes : notes.filter((note) => NOTED.test(note)), release };
}

function copied(why: string): string {
  return `copied, not mapped: ${why}`;
}

/** One note for all files of which the same is to be said. */
function notesOf(said: readonly (readonly [path: string, text: string])[]): string[] {
  const paths = new Map<string, string[]>();
  for (const [path, text] of said) {
    const same = paths.get(text);
    if (same) same.push(path);
    else paths.set(text, [path]);
  }
  return [...paths].map(([text, [first, ...others]]) => {
    const more = others.length > 0 ? ` (and ${counted(others.length, 'more file')})` : '';
    return `${first}${more}: ${text}`;
  });
}
