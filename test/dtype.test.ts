import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { DTYPE_BITS, DTYPE_NAMES, typedArrayOf } from '../src/base/dtype.js';

const header = readFileSync(join(__dirname, '../csrc/base/dtype.h'), 'utf8');

test('the table of dtypes is the same in C++ and TypeScript, order included', () => {
  const table = header.slice(header.indexOf('#define FST_DTYPES(X)'), header.indexOf('enum class'));
  const native = [...table.matchAll(/X\((\w+), (\d+)\)/g)].map(([, name, bits]) => [name, Number(bits)]);
  expect(native).toHaveLength(22);
  expect(Object.entries(DTYPE_BITS)).toEqual(native);
});

test('a typed array has the width of its dtype, or of half of it for pairs', () => {
  for (const name of DTYPE_NAMES) {
    const bits = typedArrayOf(name).BYTES_PER_ELEMENT * 8;
    expect(bits).toBe(name === 'C64' ? 32 : Math.max(8, DTYPE_BITS[name]));
  }
});
