// dist/ and what it takes to compile it: npm packages. Does only what is missing or out of date.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants } from 'node:zlib';

const top = dirname(dirname(fileURLToPath(import.meta.url)));

function run(what, command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: top, encoding: 'utf8', maxBuffer: 1 << 28, ...options });
  if (result.status === 0) return result.stdout;
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
  const reason = result.error ? result.error.message : `exit code ${result.status}`;
  throw new Error(`${what} failed: ${reason} (${command} ${args.join(' ')})`);
}

/** When package-lock.json is not the one that was installed. */
export function installDependencies() {
  const lock = readFileSync(join(top, 'package-lock.json'), 'utf8');
  const stamp = join(top, 'node_modules', '.fastsafetensors-setup');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === lock) return;
  console.error('setup: installing dependencies (npm install)');
  // Not `npm ci`: it refuses a lock file that lacks packages for other platforms, which npm leaves out where a registry
  // has none of them. --dry-run=false: within `npm pack --dry-run` npm would take that option for this command, too.
  const quiet = ['--ignore-scripts', '--no-audit', '--no-fund', '--dry-run=false'];
  run('npm install', 'npm', ['install', '--no-save', ...quiet]);
  writeFileSync(stamp, lock);
}

/** Without the outputs of sources that were moved or removed: they would be packed. */
export async function buildDist() {
  const dist = join(top, 'dist');
  mkdirSync(dist, { recursive: true });
  for (const name of readdirSync(dist, { recursive: true })) {
    const output = name.match(/^(.*?)(?:\.d)?\.(m?)[jt]s$/);
    if (name === join('src', 'core.js')) continue; // scripts/emit-js.mjs joins it; until then the old one serves
    const isOld = output ? !existsSync(join(top, `${output[1]}.${output[2]}ts`)) : name.endsWith('.map');
    if (isOld) rmSync(join(dist, name));
  }
  // What tsc remembers lies in dist/ as well: whoever deletes the folder gets all of it again.
  const declarations = ['--emitDeclarationOnly', '--incremental', '--tsBuildInfoFile', 'dist/tsc.json'];
  run('tsc', process.execPath, [join('node_modules', 'typescript', 'bin', 'tsc'), '-p', '.', ...declarations]);
  const { emitJavaScript } = await import('./emit-js.mjs'); // once its packages are there
  await emitJavaScript();
  ignoreUnused();
}

/**
 * dist/.npmignore, which npm heeds for what "files" names too: modules that an entry has in its own file, and what none
 * of them imports, code and declarations. Tests of a clone take them one by one.
 */
function ignoreUnused() {
  const { exports, bin } = JSON.parse(readFileSync(join(top, 'package.json'), 'utf8'));
  const entries = JSON.stringify([exports, bin]).matchAll(/"(\.\/dist\/[^"]*\.m?[jt]s)"/g);
  const used = new Set([...entries].map(([, path]) => join(top, path)));
  for (const path of used) {
    const isDeclaration = /\.d\.m?ts$/.test(path);
    for (const [, to] of readFileSync(path, 'utf8').matchAll(/["'`](\.{1,2}\/[^"'`\s]*\.m?js)["'`]/g)) {
      const imported = join(dirname(path), isDeclaration ? to.replace(/\.(m?)js$/, '.d.$1ts') : to);
      if (existsSync(imported)) used.add(imported);
    }
  }
  const dist = join(top, 'dist');
  const isCode = (name) => /\.m?[jt]s$/.test(name);
  const unused = readdirSync(dist, { recursive: true }).filter((name) => isCode(name) && !used.has(join(dist, name)));
  writeFileSync(
    join(dist, '.npmignore'),
    unused
      .sort()
      .map((name) => `/${name}\n`)
      .join(''),
  );
}

/** For tar: the archive does not depend on who makes it, or when. */
const SAME_EVERYWHERE = [
  '--format=ustar',
  '--mtime=@0',
  '--owner=0',
  '--group=0',
  '--numeric-owner',
  '--mode=u=rw,go=r',
];

/**
 * source.tar.br, for scripts/build-from-source.mjs. Few need it, so it is one file of 0.17 MB (gzip: 0.21) instead of
 * 0.8 MB in 180; and where binding.gyp lies in the top folder of a package, package managers build at once.
 */
export function packSource() {
  const sources = readdirSync(join(top, 'csrc'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(top, join(entry.parentPath, entry.name)))
    .filter((path) => !path.startsWith(join('csrc', 'emulators')))
    .sort();
  const packed = run('packing the sources', 'tar', [...SAME_EVERYWHERE, '-cf', '-', 'binding.gyp', ...sources], {
    encoding: 'buffer',
  });
  writeFileSync(
    join(top, 'source.tar.br'),
    brotliCompressSync(packed, { params: { [constants.BROTLI_PARAM_LGWIN]: 22 } }),
  );
}
