import { describe } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';
import { type FileCalls, UNWATCHED } from '../base/waiting.js';
import { stat } from '../native/addon.js';
import { type Files, listedFiles } from './files.js';
import { SafeTensorsMetadata } from './metadata.js';
import { isAbsent } from './named-file.js';

/** The header of a name that is no file; undefined where there is none. */
export type HeaderOf = (name: string) => SafeTensorsMetadata | undefined | Promise<SafeTensorsMetadata | undefined>;

/**
 * The headers of names none of which is a file, in their order; undefined where one is, or has no header: then they
 * mean files. INVALID_ARGUMENT for what is no header, and what `headerOf` throws.
 */
export async function headersOfNames(
  files: Files,
  headerOf: HeaderOf,
  calls: FileCalls = UNWATCHED,
): Promise<SafeTensorsMetadata[] | undefined> {
  const names = [listedFiles(files)].flat();
  for (const name of names) {
    if (typeof name !== 'string' || name === '' || (await exists(name, calls))) return undefined;
  }
  const headers: SafeTensorsMetadata[] = [];
  for (const name of names as string[]) {
    const header = await calls.call("the copier's header of", name, async () => headerOf(name));
    if (header === undefined) return undefined;
    if (!(header instanceof SafeTensorsMetadata)) {
      const expected = 'expected SafeTensorsMetadata or undefined';
      throw new InvalidArgumentError(
        `the copier's metadata(${describe(name)}): ${expected}, found ${describe(header)}`,
      );
    }
    headers.push(header.named(name));
  }
  return headers.length > 0 ? headers : undefined;
}

async function exists(path: string, calls: FileCalls): Promise<boolean> {
  try {
    await stat(path, calls);
    return true;
  } catch (error) {
    return !isAbsent(error);
  }
}
