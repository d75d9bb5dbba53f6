// Formats the C++ sources in place; with --check only tells which are not formatted. Says so and succeeds where
// clang-format is not installed.
import { spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = dirname(dirname(fileURLToPath(import.meta.url)));
if (spawnSync('clang-format', ['--version']).status !== 0) {
  console.log('clang-format is not installed (apt-get install clang-format): C++ sources were not checked');
  process.exit(0);
}
const list = spawnSync('git', ['ls-files', '*.cc', '*.h'], { cwd: top, encoding: 'utf8' })
  .stdout.trim()
  .split('\n')
  .filter(Boolean);
const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
process.exit(spawnSync('clang-format', [...mode, ...list], { cwd: top, stdio: 'inherit' }).status ?? 1);
