import { Command } from 'commander';

async function withOptions(name: string, define: (command: Command) => void): Promise<void> {
  const command = new Command(name);
  define(command);
  await command.parseAsync(process.argv.slice(3), { from: 'user' });
}

/** `npm run bench -- <name> [options]`: each name is a file of this folder. */
const BENCHES: Readonly<Record<string, () => Promise<void>>> = {
  main: async () => (await import('./main-job.js')).printMainJob(),
  cuda: async () => withOptions('cuda', (await import('./cuda.js')).define),
  gpu: async () => withOptions('gpu', (await import('./gpu.js')).define),
  host: async () => withOptions('host', (await import('./host.js')).define),
  ranks: async () => withOptions('ranks', (await import('./ranks.js')).define),
  ort: async () => withOptions('ort', (await import('./ort.js')).define),
  broadcast: async () => withOptions('broadcast', (await import('./broadcast.js')).define),
  lazy: async () => withOptions('lazy', (await import('./lazy.js')).define),
  header: async () => withOptions('header', (await import('./header.js')).define),
  import: async () => (await import('./import.js')).printImport(),
  save: async () => withOptions('save', (await import('./save.js')).define),
  checksum: async () => withOptions('checksum', (await import('./checksum.js')).define),
  convert: async () => (await import('./convert.js')).printConvert(process.argv.slice(3)),
  '3fs': async () => (await import('./three-fs.js')).printThreeFs(process.argv.slice(3)),
};

const name = process.argv[2] ?? 'main';
const bench = BENCHES[name];
if (bench) {
  bench().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
} else {
  console.error(`there is no benchmark "${name}"; there are ${Object.keys(BENCHES).join(', ')}`);
  process.exitCode = 1;
}
