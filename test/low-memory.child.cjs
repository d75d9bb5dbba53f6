// Headers that ask for more memory than the process may have.
const { execFileSync } = require('node:child_process');
const { closeSync, ftruncateSync, openSync, readFileSync, writeSync } = require('node:fs');
const { join } = require('node:path');
const { assert, folder, main, nothingHeld, SafeTensorsMetadata } = require('./support/child-helpers.cjs');

/** From here on the process may have `more` bytes of address space. */
function limit(more) {
  const used = Number(/VmSize:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'latin1'))[1]) * 1024;
  execFileSync('prlimit', ['--pid', String(process.pid), `--as=${used + more}`]);
}

/** A file whose header is `before`, `count` times `each`, and `after`. */
function write(before, each, count, after) {
  const path = join(folder, 'wide.safetensors');
  const file = openSync(path, 'w');
  const length = Buffer.alloc(8);
  const size = before.length + each.length * count - 1 + after.length;
  length.writeBigUInt64LE(BigInt(size));
  writeSync(file, Buffer.concat([length, Buffer.from(before)]));
  writeSync(file, Buffer.alloc(each.length * count - 1, each));
  writeSync(file, after);
  ftruncateSync(file, 8 + size + 1);
  closeSync(file);
  return path;
}

main({
  async shapeOfMillions() {
    const path = write('{"w":{"dtype":"U8","shape":[', '1,', 45_000_000, '],"data_offsets":[0,1]}}');
    await SafeTensorsMetadata.fromFile(path).catch(() => {}); // threads and code are there before the limit
    limit(250 << 20);
    await assert.rejects(SafeTensorsMetadata.fromFile(path), { code: 'OUT_OF_HOST_MEMORY' });
    await nothingHeld();
  },
});
