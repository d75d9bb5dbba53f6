import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';

// `npm run bench -- <name> [options]`: each benchmark is a file of this folder that adds its command.

/** What a benchmark's file exports. */
export interface Benchmark {
  /** Adds options and action to the command of that name. */
  define(command: Command): void;
}

async function main(): Promise<void> {
  const program = new Command('bench').description('Benchmarks of fastsafetensors-node');
  for (const name of ['main-job', 'cuda']) {
    const file = join(__dirname, `${name}.js`);
    if (!existsSync(file)) continue;
    const { define } = (await import(file)) as Benchmark;
    define(program.command(name));
  }
  await program.parseAsync();
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
