import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ERROR_CODES, FastSafetensorsError, InvalidArgumentError } from '../src/base/errors.js';

const header = readFileSync(join(__dirname, '../csrc/base/status.h'), 'utf8');

test('the list of error codes is the same in C++ and TypeScript, order included', () => {
  const table = header.slice(header.indexOf('#define FST_ERROR_CODES(X)'), header.indexOf('enum class'));
  const native = [...table.matchAll(/X\((\w+)\)/g)].map(([, name]) => name).filter((name) => name !== 'X');
  expect(native.length).toBeGreaterThan(30);
  expect(ERROR_CODES).toEqual(native);
});

test('an error tells its place and its cause, and has no property for what it does not know', () => {
  const cause = new Error('disk');
  const error = new FastSafetensorsError('IO_ERROR', 'no', { path: 'a', tensor: 'w', offset: 0, cause });
  expect(error).toMatchObject({
    name: 'FastSafetensorsError',
    code: 'IO_ERROR',
    path: 'a',
    tensor: 'w',
    offset: 0,
    cause,
  });
  expect(Object.keys(new FastSafetensorsError('CLOSED', 'no')).sort()).toEqual(['code', 'name']);
});

test('misuse is a TypeError with a code', () => {
  expect(new InvalidArgumentError('no')).toBeInstanceOf(TypeError);
  expect(new InvalidArgumentError('no').code).toBe('INVALID_ARGUMENT');
});
