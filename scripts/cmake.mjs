// Configures and builds by the presets of CMakePresets.json: folders, options and the environment of tests stand there.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const top = dirname(dirname(fileURLToPath(import.meta.url)));
const presets = JSON.parse(readFileSync(join(top, 'CMakePresets.json'), 'utf8'));

export function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** What a preset says under a key: its own word before that of the preset that it inherits from. */
function setting(kind, name, key) {
  const preset = presets[kind].find((one) => one.name === name);
  return preset[key] ?? (preset.inherits && setting(kind, preset.inherits, key));
}

/** A preset's text with its macros replaced. */
const expand = (text, presetName) => text.replace(/\$\{(\w+)\}/g, (_, name) => ({ sourceDir: top, presetName })[name]);

export function buildFolder(preset) {
  return expand(setting('configurePresets', preset, 'binaryDir'), preset);
}

/** The environment that the tests of a preset run in. */
export function testEnvironment(preset) {
  const variables = Object.entries(setting('testPresets', preset, 'environment') ?? {});
  return { ...process.env, ...Object.fromEntries(variables.map(([name, value]) => [name, expand(value, preset)])) };
}

function cmake(what, command, args, env = process.env) {
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8', maxBuffer: 1 << 28, env });
  if (result.status === 0) return;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  const reason = result.error ? result.error.message : `exit code ${result.status}`;
  throw new Error(`${what} failed: ${reason} (${command} ${args.join(' ')})`);
}

/** The presets' own generator where it is installed, else make. */
const generator = () => (has('ninja') ? [] : ['-G', 'Unix Makefiles']);

/** cmake-js's own arguments: it knows no presets, so the preset is what it passes on to cmake. */
function cmakeJs(...args) {
  const program = join('node_modules', 'cmake-js', 'bin', 'cmake-js');
  return [program, ...args, '--log-level', 'error', '--out', buildFolder('dev'), '--config', 'RelWithDebInfo'];
}

/** Configures where that was not done, or again. The folder of 'dev' is cmake-js's, whoever asks: one set of flags. */
export function configure(preset, again = false) {
  const cache = join(buildFolder(preset), 'CMakeCache.txt');
  if (existsSync(cache) && !again) return;
  try {
    if (preset === 'dev') cmake('configuring', process.execPath, [...cmakeJs('configure'), '--', '--preset=dev']);
    else cmake('configuring', 'cmake', [`--preset=${preset}`, ...generator()]);
  } catch (error) {
    rmSync(cache, { force: true });
    throw error;
  }
}

/** How each source by itself is compiled with 'dev', `[{file, command, …}]`; written into `folder`. */
export function compileCommands(folder) {
  const env = { ...process.env, FASTSAFETENSORS_UNITY: '' };
  cmake('configuring', 'cmake', ['--preset=dev', '-B', folder, ...generator()], env);
  return JSON.parse(readFileSync(join(folder, 'compile_commands.json'), 'utf8'));
}

/** Whether there is a target native_tests, also where GoogleTest was installed only now. */
export function configureTests(preset) {
  const found = () =>
    /^FST_GTEST_FOUND:INTERNAL=(1|TRUE)$/m.test(readFileSync(join(buildFolder(preset), 'CMakeCache.txt'), 'utf8'));
  configure(preset);
  if (!found()) configure(preset, true);
  return found();
}

export function build(preset, target) {
  cmake('building', 'cmake', ['--build', buildFolder(preset), '--parallel', '2', '--target', target]);
}

/** The addon and its emulators. */
export function buildAddon() {
  cmake('building the addon', process.execPath, cmakeJs('build', '--parallel', '2', '--target', 'all'));
}
