// Exits amid a save: `file`, `checksum` or `sharded`, into a folder; `killed` dies so that nothing can be cleaned.
const { join } = require('node:path');
const { readdirSync } = require('node:fs');
const { saveFile, saveSharded } = require('..');
const { endless } = require('./support/endless-tensor.cjs');

const [folder, what] = process.argv.slice(2);
if (what === 'sharded') saveSharded([endless], folder);
else saveFile([endless], join(folder, 'x.safetensors'), { checksum: what === 'checksum' });

const end = () => (what === 'killed' ? process.kill(process.pid, 'SIGKILL') : process.exit(3));
const look = setInterval(() => {
  if (!readdirSync(folder).some((name) => name.startsWith('.fst-'))) return;
  clearInterval(look);
  process.stdout.write('begun\n', end);
}, 1);
