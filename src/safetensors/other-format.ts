/** What a file is that is not what its reader expected, for the error that says so. */
import { openRegularFile, readAt } from '../base/regular-file.js';
import { native } from '../native/addon.js';

/** csrc/safetensors/other_format.h kFormatBytes. */
const FORMAT_BYTES = 64 * 1024;
/** Formats that cannot be meant where any bytes may stand. */
const NO_DATA = ['empty', 'git-lfs', 'html', 'json', 'xml', 'zeros'];

/** "a Git LFS pointer …", to follow "it is"; undefined for what is not recognised, and for the reader's own format. */
export function otherFormat(bytes: Uint8Array, own: string): string | undefined {
  const { name, description } = native().recognizeFormat(bytes.subarray(0, FORMAT_BYTES), bytes.length);
  return name === '' || name === own ? undefined : description;
}

/** otherFormat() of a file that is not read whole; undefined also when it cannot be read. */
export async function otherFormatOf(path: string, own: readonly string[]): Promise<string | undefined> {
  const format = await formatOf(path);
  return format === undefined || own.includes(format.name) ? undefined : format.description;
}

/** What a file of bare data is instead of data, to be appended to a message: "; it is …". '' where that is unknown. */
export async function noData(path: string): Promise<string> {
  const format = await formatOf(path);
  return format && NO_DATA.includes(format.name) ? `; it is ${format.description}` : '';
}

/** Undefined for what is not recognised, or cannot be read: then the error that this was to explain is told alone. */
async function formatOf(path: string): Promise<{ name: string; description: string } | undefined> {
  const handle = await openRegularFile(path).catch(() => undefined);
  if (handle === undefined) return undefined;
  try {
    const { size } = await handle.stat();
    const bytes = new Uint8Array(Math.min(size, FORMAT_BYTES));
    const format = native().recognizeFormat(bytes.subarray(0, await readAt(handle, bytes, 0)), size);
    return format.name === '' ? undefined : format;
  } catch {
    return undefined;
  } finally {
    await handle.close();
  }
}
