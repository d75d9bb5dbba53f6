// Runs clang-tidy (.clang-tidy says which checks) over the C++ sources of the addon, or over those with a text in their
// path: `node scripts/clang-tidy.mjs [--deep] [csrc/napi]`. A file that was clean is not looked at again until it, a
// header that it includes, or the checks change. With --deep, paths through long functions are followed as far as
// clang's analyzer does by itself.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { compileCommands, top } from './cmake.mjs';
import { wheel } from './wheel.mjs';

// From PyPI: one version for all, and four times as fast as Debian 12's, which looks through the system's headers too.
const program = join(wheel('clang-tidy'), 'clang_tidy', 'data', 'bin', 'clang-tidy');
const args = process.argv.slice(2);
const deep = args.includes('--deep');
const only = args.find((arg) => !arg.startsWith('--')) ?? '';
// Two thirds of the time was the analyzer's, most of it for a few long functions.
const analyzer = deep ? [] : ['-analyzer-config', 'max-nodes=5000'];
const options = analyzer.flatMap((arg) => ['--extra-arg=-Xclang', `--extra-arg=${arg}`]);

const folder = join(top, 'build', 'tidy');
mkdirSync(folder, { recursive: true });
const csrc = join(top, 'csrc');
const commands = compileCommands(join(folder, 'cmake'))
  .filter(({ file }) => file.startsWith(csrc) && !file.startsWith(join(csrc, 'emulators')))
  // clang knows neither the option nor g++'s precompiled headers.
  .map((entry) => ({
    ...entry,
    command: entry.command.replace(/ -fno-gnu-unique| -Winvalid-pch| -include \S+cmake_pch\.hxx/g, ''),
  }));
writeFileSync(join(folder, 'compile_commands.json'), JSON.stringify(commands));

const checks = readFileSync(join(top, '.clang-tidy'), 'utf8');
const texts = new Map();
/** A file of csrc and every header of csrc that it includes, by path. */
function withHeaders(path, found = new Map()) {
  if (found.has(path) || !existsSync(path)) return found;
  if (!texts.has(path)) texts.set(path, readFileSync(path, 'utf8'));
  found.set(path, texts.get(path));
  for (const [, header] of texts.get(path).matchAll(/^#include "(.*)"/gm)) {
    for (const place of [csrc, dirname(path)]) withHeaders(join(place, header), found);
  }
  return found;
}
const stampOf = ({ file, command }) =>
  join(
    folder,
    createHash('sha256')
      .update(JSON.stringify([checks, program, options, command, ...withHeaders(file)]))
      .digest('hex'),
  );

const chosen = commands.filter((entry) => entry.file.includes(only));
if (chosen.length === 0) {
  console.error(`clang-tidy: the build compiles no source with "${only}" in its path`);
  process.exit(1);
}
const queue = chosen.filter((entry) => !existsSync(stampOf(entry)));
const total = queue.length;
let failed = 0;
async function work() {
  for (let entry = queue.shift(); entry; entry = queue.shift()) {
    const stamp = stampOf(entry);
    const child = spawn(program, ['-p', folder, '--quiet', ...options, entry.file], { cwd: top });
    let output = '';
    child.stdout.on('data', (text) => (output += text));
    child.stderr.on('data', () => {}); // how many warnings of other headers were left out
    const code = await new Promise((resolve) => child.once('close', resolve));
    if (code === 0 && output === '') writeFileSync(stamp, '');
    else console.log(`${relative(top, entry.file)}: clang-tidy exit code ${code}\n${output}`);
    if (code !== 0) ++failed;
  }
}
await Promise.all(Array.from({ length: availableParallelism() }, work));
console.log(`clang-tidy: ${commands.length} files, ${total} of them looked at, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
