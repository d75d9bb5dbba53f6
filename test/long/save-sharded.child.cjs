// Runs a command line of the built package; then prints the most memory that it had, in MiB, as the last line.
const { readFileSync } = require('node:fs');
const { main } = require('../../dist/src/cli/main.js');

main(['node', 'fastsafetensors-node', ...process.argv.slice(2)]).then(() => {
  const [, kib] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
  console.log(Math.ceil(kib / 1024));
});
