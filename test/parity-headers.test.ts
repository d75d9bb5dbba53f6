import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FastSafetensorsError, SafeTensorsMetadata } from 'fastsafetensors-node';

// Each header of fixtures/malformed means here what it means to fastsafetensors 0.5.0, or both refuse it, or the
// difference is in the table with its reason. Recorded by parity/record_headers.py.

type Answer = { refused: string } | { metadata: Record<string, string> | ''; tensors: unknown[] };

const FIXTURES = join(__dirname, '../fixtures');
const THERE: Record<string, Answer> = JSON.parse(readFileSync(join(FIXTURES, 'parity/headers.json'), 'utf8'));

/** Accepted here alone, and refused here alone; files without `.safetensors`. */
const DIFFERENCES: readonly { here: 'accepted' | 'refused'; why: string; files: readonly string[] }[] = [
  {
    here: 'accepted',
    why: 'dtypes of the format that it does not know',
    files: ['dtype-c64', 'dtype-f6_e2m3', 'dtype-f6_e3m2', 'dtype-f8_e4m3fnuz', 'dtype-f8_e5m2fnuz'],
  },
  {
    here: 'refused',
    why: 'of a key that stands twice there the last one counts: two readers may see two models',
    files: [
      'duplicate-entry',
      'duplicate-entry-escaped',
      'duplicate-metadata',
      'duplicate-metadata-escaped',
      'duplicate-nested',
      'duplicate-top',
      'duplicate-top-escaped',
      'duplicate-unknown-field',
      'two-metadata',
    ],
  },
  {
    here: 'refused',
    why: 'the format has texts for metadata',
    files: ['metadata-array', 'metadata-null-value', 'metadata-number-value', 'metadata-object-value'],
  },
  {
    here: 'refused',
    why: 'Python reads more than JSON, and the format wants { as the first byte',
    files: ['leading-space', 'lone-surrogate-escape', 'nan'],
  },
  {
    here: 'refused',
    why: 'offsets are whole numbers: there they become floats',
    files: ['offsets-exponent', 'offsets-fraction'],
  },
  {
    here: 'refused',
    why: 'bytes after the last tensor may hide anything; allowTrailingBytes accepts them',
    files: ['trailing-bytes'],
  },
];

async function here(file: string): Promise<Answer> {
  try {
    const header = await SafeTensorsMetadata.fromFile(join(FIXTURES, 'malformed', file));
    const tensors = [...header].map(({ name, dtype, shape, dataOffsets }) => [name, dtype, shape, dataOffsets]);
    return { metadata: Object.fromEntries(header.metadata), tensors: sorted(tensors) };
  } catch (error) {
    if (!(error instanceof FastSafetensorsError)) throw error;
    return { refused: error.code };
  }
}

/** By text, as both say the same then. */
function sorted(tensors: readonly unknown[]): unknown[] {
  return tensors.map((tensor) => JSON.stringify(tensor)).sort();
}

test.each(Object.entries(THERE))('%s', async (file, there) => {
  const found = await here(file);
  const difference = DIFFERENCES.find(({ files }) => files.includes(file.replace('.safetensors', '')));
  const says = 'refused' in found ? 'refused' : 'accepted';
  expect([difference?.why, difference?.here ?? says]).toEqual([difference?.why, says]);
  expect('refused' in there).toBe(difference ? says === 'accepted' : says === 'refused');
  if ('tensors' in found && 'tensors' in there) {
    const metadata = there.metadata || {}; // '' there where a file has none
    expect(found).toEqual({ metadata, tensors: sorted(there.tensors) });
  }
});
