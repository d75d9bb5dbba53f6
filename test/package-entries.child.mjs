// The package by its name, through both of its entries, and through all of its exports.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import * as esm from 'fastsafetensors-node';
import * as esmOrt from 'fastsafetensors-node/ort';
import * as esmTesting from 'fastsafetensors-node/testing';
import * as esmTfjs from 'fastsafetensors-node/tfjs';

const require = createRequire(import.meta.url);
for (const [imported, required] of [
  [esm, require('fastsafetensors-node')],
  [esmTesting, require('fastsafetensors-node/testing')],
  [esmOrt, require('fastsafetensors-node/ort')],
  [esmTfjs, require('fastsafetensors-node/tfjs')],
]) {
  const names = Object.keys(required).filter((name) => name !== '__esModule');
  assert.deepEqual(
    Object.keys(imported)
      .filter((name) => !['default', 'module.exports', '__esModule'].includes(name))
      .sort(),
    names.sort(),
  );
  assert.ok(names.length > 0);
  for (const name of names) assert.equal(imported[name], required[name], name);
}

const cjs = require('fastsafetensors-node');
esm.registerCopier('by esm', () => () => ({}));
assert.ok(cjs.registeredCopiers().includes('by esm'));
await assert.rejects(
  cjs.fastsafeOpen('/nonexistent'),
  (error) => error instanceof esm.FastSafetensorsError && error.code === 'IO_ERROR',
);
assert.equal(require('fastsafetensors-node/package.json').name, 'fastsafetensors-node');
assert.throws(() => require('fastsafetensors-node/dist/src/native/addon.js'), {
  code: 'ERR_PACKAGE_PATH_NOT_EXPORTED',
});
console.log('ok');
