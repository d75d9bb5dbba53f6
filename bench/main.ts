import { Command } from 'commander';

/** `npm run bench -- <name> [options]`: each name is a file of this folder. */
const BENCHES: Readonly<Record<string, () => Promise<void>>> = {
  main: async () => (await import('./main-job.js')).printMainJob(),
  cuda: async () => {
    const command = new Command('cuda');
    (await import('./cuda.js')).define(command);
    await command.parseAsync(process.argv.slice(3), { from: 'user' });
  },
  gpu: async () => {
    const command = new Command('gpu');
    (await import('./gpu.js')).define(command);
    await command.parseAsync(process.argv.slice(3), { from: 'user' });
  },
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
