// Saves into a folder. `die`: is killed when all of the set is written, amid a saveFile, and before any file has its
// name. `again`: saves one set after the other, the number of each in all of its bytes, until it is killed.
const { join } = require('node:path');
const { saveFile, saveSharded } = require('..');
const { endless } = require('./support/endless-tensor.cjs');

const [folder, what] = process.argv.slice(2);

const tensor = (name, fill, length = 8) => ({ name, shape: [length], data: new Uint8Array(length).fill(fill) });

async function* dying() {
  yield ['a', tensor('a', 1)];
  saveFile([endless], join(folder, 'x.safetensors'));
  await new Promise((resolve) => setTimeout(resolve, 200));
  process.stdout.write('written\n', () => process.kill(process.pid, 'SIGKILL'));
  await new Promise(() => {});
}

async function* streamOf(tensors) {
  for (const tensor of tensors) yield [tensor.name, tensor];
}

async function again(from) {
  for (let n = from; ; n = (n % 250) + 1) {
    const tensors = Array.from({ length: 3 + (n % 3) }, (_, i) => tensor(`t${i}`, n, 4096 * 8));
    await saveSharded(n % 2 === 0 ? streamOf(tensors) : tensors, folder, {
      maxShardBytes: n % 5 === 0 ? 1e9 : 4096 * 12,
    });
    process.stdout.write(`${n}\n`);
  }
}

if (what === 'die') saveSharded(dying(), folder);
else again(Number(what));
