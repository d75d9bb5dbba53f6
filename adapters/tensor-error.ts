import { type ErrorCode, FastSafetensorsError } from '../src/base/errors.js';

/** An error of one tensor: `tensor "<name>" <what>`. */
export function tensorError(code: ErrorCode, { name }: { readonly name: string }, what: string, cause?: unknown) {
  return new FastSafetensorsError(code, `tensor "${name}" ${what}`, { tensor: name, cause });
}
