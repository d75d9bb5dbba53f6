import { FastSafetensorsError } from '../base/errors.js';
import { nearest } from '../base/nearest.js';

/** UNKNOWN_TENSOR: `problem`, and which of the names that there are may be meant. */
export function unknownTensor(problem: string, tensor: string, names: Iterable<string>): FastSafetensorsError {
  const near = nearest(tensor, names);
  const advice = near === undefined ? 'keys() gives the names that there are' : `did you mean "${near}"?`;
  return new FastSafetensorsError('UNKNOWN_TENSOR', `${problem}; ${advice}`, { tensor });
}
