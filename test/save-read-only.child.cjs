// Saves by a link in a folder that it makes read-only for itself: it needs a mount namespace of its own.
const { execFileSync } = require('node:child_process');
const { join } = require('node:path');
const { saveFile } = require('..');

const [folder] = process.argv.slice(2);
execFileSync('mount', ['--bind', folder, folder]);
execFileSync('mount', ['-o', 'remount,bind,ro', folder]);

async function main() {
  const tensor = { name: 'w', dtype: 'U8', shape: [1], data: Uint8Array.of(1) };
  for (const checksum of [false, true]) await saveFile([tensor], join(folder, 'link'), { checksum });
  console.log('ok');
}

main();
