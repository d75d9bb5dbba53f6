// Exits amid a save: `file`, `checksum`, `sharded` or `split-tfjs`, into a folder; `killed` dies so that nothing can be
// cleaned. `model`: of split-tfjs.
const { join } = require('node:path');
const { readdirSync } = require('node:fs');
const { saveFile, saveSharded } = require('..');
const { splitTfjs } = require('../dist/src/models/tfjs/split.js');
const { endless } = require('./support/endless-tensor.cjs');

const [folder, what, model] = process.argv.slice(2);
if (what === 'split-tfjs') splitTfjs(model, { out: folder, maxShardBytes: 1 });
else if (what === 'sharded') saveSharded([endless], folder);
else saveFile([endless], join(folder, 'x.safetensors'), { checksum: what === 'checksum' });

const end = () => (what === 'killed' ? process.kill(process.pid, 'SIGKILL') : process.exit(3));
const look = setInterval(() => {
  // Of a split one shard is there whole when the next one is begun.
  const begun = readdirSync(folder).filter((name) => name.startsWith('.fst-'));
  if (begun.length < (model ? 2 : 1)) return;
  clearInterval(look);
  process.stdout.write('begun\n', end);
}, 1);
