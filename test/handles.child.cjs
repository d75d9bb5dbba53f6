// Processes that share memory, started and killed by handles.test.ts. They leave nothing on disk, so that they may be
// killed at any time. Every byte of tensor 'm.7' is 7.
const assert = require('node:assert/strict');
const { closeSync, openSync, readFileSync } = require('node:fs');
const { setTimeout } = require('node:timers/promises');
const { exportHandle, importTensors, loadFile, nativeMetrics, receiveHandle } = require('../dist/src/index.js');

const print = (value) => console.log(JSON.stringify(value));
let ended = false;
process.stdin.on('end', () => {
  ended = true;
});
process.stdin.resume();

async function checkBytes(tensors) {
  for (const [name, tensor] of tensors) {
    const bytes = Buffer.from(await tensor.toHost());
    assert.ok(bytes.length > 0 && bytes.equals(Buffer.alloc(bytes.length, Number(name.split('.')[1]))), name);
  }
}

/** By a number of ours, a path in /proc, or the path of a socket, which needs no file with the description. */
async function tensorsOf(where, descriptionFile) {
  if (!descriptionFile) {
    const handle = await receiveHandle(where);
    const tensors = await importTensors(handle);
    handle.close();
    return tensors;
  }
  const fd = /^\d+$/.test(where) ? Number(where) : openSync(where, 'r');
  const tensors = await importTensors({ fd, description: readFileSync(descriptionFile, 'utf8') });
  closeSync(fd);
  return tensors;
}

const roles = {
  /** Exports a file, says so, and stays until its input ends. */
  async exporter(file, options) {
    const tensors = Object.values(await loadFile(file, JSON.parse(options)));
    const handle = await exportHandle(tensors);
    for (const tensor of tensors) tensor.dispose();
    print({ pid: process.pid, fd: handle.fd, description: handle.description });
    while (!ended) await setTimeout(5);
    handle.close();
  },

  /** Imports what tensorsOf() finds; reads it over and over until its input ends. */
  async importer(where, descriptionFile) {
    const tensors = await tensorsOf(where, descriptionFile);
    await checkBytes(tensors);
    print('imported');
    for (let rounds = 0; !ended; ++rounds) {
      await checkBytes(tensors);
      if (rounds === 0) print('read again');
    }
    await checkBytes(tensors);
    // What this process writes is its own.
    for (const tensor of tensors.values())
      if (tensor.device.type === 'cpu') new Uint8Array(tensor.data.buffer).fill(255);
    for (const tensor of tensors.values()) tensor.dispose();
    while (nativeMetrics().openFiles + nativeMetrics().deviceBytes > 0) await setTimeout(1);
    print('done');
  },
};

const [role, ...args] = process.argv.slice(2);
roles[role](...args).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
