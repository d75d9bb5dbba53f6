// Writes the JavaScript of dist/ with esbuild; declarations are tsc's. Opened and compiled one by one, the modules that
// an entry imports cost more than half of the time of an import. So what src/index.ts imports is one file,
// dist/src/core.js, and what an adapter imports beside that is in the file of its entry. In place of each module of
// core.js lies one line that takes it out of there: entries, commands and tests that import it by itself get the same
// one, with the same registry and classes. What a function requires on first use stays a file of its own.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, posix, relative } from 'node:path';
import { build, transform } from 'esbuild';
import ts from 'typescript';
import { top } from './cmake.mjs';

const CORE = 'dist/src/core.js';
const ADAPTERS = ['adapters/ort/index.ts', 'adapters/tfjs/index.ts'];

/**
 * Never executed. Tools that trace the files of a program (@vercel/nft) find here what core.js opens by computed names:
 * the binary that loads where they run, those of its platform's other C library, and the script of doctor's probes.
 */
const TRACED = `0 && [
  require('node-gyp-build')(require('node:path').join(__dirname, '../..')),
  require('node:path').join(
    __dirname, '../../prebuilds', require('node:os').platform() + '-' + require('node:os').arch(),
  ),
  require.resolve('./doctor/probe.js'),
];`;

// Without white space: 90 kB less. Names stay, for stacks; and core.js keeps its lines, with the names of its sources.
const common = {
  absWorkingDir: top,
  platform: 'node',
  target: 'node20.19',
  logLevel: 'warning',
  minifyWhitespace: true,
};
const TRANSFORMED = { loader: 'ts', target: common.target, minifyWhitespace: true };
const bundle = { ...common, bundle: true, packages: 'external', format: 'cjs' };

/** The way from one file of dist/ to another, as require() takes it. */
function requirePath(from, to) {
  const path = relative(dirname(from), to);
  return path.startsWith('.') ? path : `./${path}`;
}

/** Sources that a module imports when it is loaded itself, and so on; not what it requires within a function. */
function importedBy(entry, { inputs }) {
  const found = new Set([entry]);
  for (const path of found)
    for (const { path: next, kind } of inputs[path].imports)
      if (kind === 'import-statement' && inputs[next]) found.add(next);
  return [...found];
}

/** For core.js: what a module requires within a function stays a file of its own. */
const ownFiles = {
  name: 'own files',
  setup({ onResolve }) {
    onResolve({ filter: /^\./ }, ({ path, kind, resolveDir }) => {
      if (kind !== 'require-call') return undefined;
      const file = posix.join('dist', relative(top, resolveDir), path);
      return { path: requirePath(CORE, file), external: true };
    });
  },
};

/** For core.js, which keeps its lines: comments are a twelfth of it, and those for users stand in declarations. */
const noComments = {
  name: 'no comments',
  setup({ onLoad }) {
    onLoad({ filter: /\.ts$/ }, async ({ path }) => {
      const { code } = await transform(readFileSync(path, 'utf8'), { ...TRANSFORMED, sourcefile: path });
      return { contents: code };
    });
  },
};

/** For bundles in `outfile`: what core.js has comes from there. */
const outOfCore = (modules, outfile) => ({
  name: 'out of core',
  setup({ onResolve, onLoad }) {
    const core = requirePath(outfile, CORE);
    onResolve({ filter: /^\./ }, ({ path, resolveDir }) => {
      if (path === core) return { path, external: true };
      const source = posix.join(relative(top, resolveDir), path.replace(/\.js$/, '.ts'));
      return modules.includes(source) ? { path: source, namespace: 'core' } : undefined;
    });
    onLoad({ filter: /.*/, namespace: 'core' }, ({ path }) => ({
      contents: `module.exports = require('${core}')['${path}'];`,
      resolveDir: top,
    }));
  },
});

/** Rejects when a source cannot be compiled. */
export async function emitJavaScript() {
  const { config } = ts.readConfigFile(join(top, 'tsconfig.json'), ts.sys.readFile);
  const sources = ts.sys.readDirectory(top, ['.ts', '.mts'], config.exclude, config.include);
  const [es, commonJs] = [
    sources.filter((path) => path.endsWith('.mts')),
    sources.filter((path) => /\.ts$/.test(path)),
  ];
  const each = { ...common, outdir: 'dist', outbase: '.', tsconfig: 'tsconfig.json' };
  await Promise.all([
    build({ ...each, entryPoints: commonJs, format: 'cjs' }),
    build({ ...each, entryPoints: es, format: 'esm', outExtension: { '.js': '.mjs' } }),
  ]);

  const { metafile } = await build({ ...bundle, entryPoints: ['src/index.ts'], write: false, metafile: true });
  const modules = importedBy('src/index.ts', metafile);
  const contents = modules.map((path) => `export * as '${path}' from './${path}';`).join('\n');
  const footer = { js: TRACED };
  const written = { outfile: CORE, minifyWhitespace: false };
  await build({ ...bundle, ...written, stdin: { contents, resolveDir: top }, plugins: [ownFiles, noComments], footer });

  await dropIndents(join(top, CORE));
  const core = createRequire(import.meta.url)(join(top, CORE));
  for (const path of modules) {
    const file = `dist/${path.replace(/\.ts$/, '.js')}`;
    // Never executed: Node.js looks there for the names that ES modules may import.
    const names = `0 && (module.exports = { ${Object.keys(core[path]).join(', ')} });`;
    writeFileSync(join(top, file), `module.exports = require('${requirePath(file, CORE)}')['${path}'];\n${names}\n`);
  }
  for (const path of ADAPTERS) {
    const outfile = `dist/${path.replace(/\.ts$/, '.js')}`;
    await build({ ...bundle, entryPoints: [path], outfile, plugins: [outOfCore(modules, outfile)] });
  }
}

/** 29 kB of core.js. */
async function dropIndents(path) {
  const text = readFileSync(path, 'utf8');
  const bare = text.replace(/^ +/gm, '');
  const [before, after] = await Promise.all(
    [text, bare].map((code) => transform(code, { ...TRANSFORMED, loader: 'js' })),
  );
  if (before.code !== after.code) throw new Error(`${path}: a text of several lines has indents: write it in one`);
  writeFileSync(path, bare);
}
