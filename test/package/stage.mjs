// What the cells run against: the package of a fresh clone, and empty projects outside of every node_modules.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, delimiter, join } from 'node:path';
import { zig } from '../../scripts/zig.mjs';
import { run } from './run.mjs';
import { tool, toolModules } from './tools.mjs';

/** Programs that installing must not need. */
const COMPILERS = ['c++', 'g++', 'gcc', 'cc', 'clang', 'clang++', 'make', 'cmake', 'python', 'python3', 'node-gyp'];
/** Programs that a project has without them. */
const PROGRAMS = ['sh', 'bash', 'env', 'ls', 'cat', 'cp', 'mv', 'rm', 'mkdir', 'uname', 'sed', 'dirname', 'tar', 'git'];

const which = (name, path = process.env.PATH) =>
  path
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find(existsSync);

export class Stage {
  /** Removed by close(). */
  folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-package-'));
  #cache; // of package managers that keep one: shared by the cells, kept for the next run

  constructor(top) {
    this.top = top;
    this.#cache = join(top, 'build', 'package', 'cache');
  }

  /** Packs a clone of HEAD, or this tree as it is, where only this machine's binary is compiled. */
  async pack(cloned) {
    this.clone = cloned ? await this.#cloneOfHead() : this.top;
    const packed = await this.#packed('.');
    this.tarball = packed.tarball;
    return packed;
  }

  /** The package of emulators of the same tree, packed when it is first asked for. */
  emulators() {
    this.#emulators ??= this.#packed(join('packages', 'emulators')).then(({ tarball }) => tarball);
    return this.#emulators;
  }
  #emulators;

  async #packed(folder) {
    const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', this.folder], {
      cwd: join(this.clone, folder),
      env: { FASTSAFETENSORS_PACK: 'host' },
      timeoutMs: 900_000,
    });
    const [packed] = JSON.parse(stdout);
    return { ...packed, tarball: join(this.folder, packed.filename) };
  }

  /** A clone that has nothing but npm's packages and, in build/, what earlier runs compiled. */
  async #cloneOfHead() {
    const clone = join(this.top, 'build', 'package', 'clone');
    const git = (...args) => run('git', args, { cwd: existsSync(clone) ? clone : this.top });
    if (!existsSync(clone)) await git('clone', '--quiet', this.top, clone);
    await git('fetch', '--quiet', this.top, 'HEAD');
    await git('reset', '--quiet', '--hard', 'FETCH_HEAD');
    await git('clean', '-ffdxq', '--exclude=/build');
    symlinkSync(join(this.top, 'node_modules'), join(clone, 'node_modules'));
    // The cross compiler is the one of this tree, too: 100 MB, pinned by its hash.
    const compiler = join(zig(), '..', '..');
    const link = join(clone, 'build', basename(compiler));
    mkdirSync(join(clone, 'build'), { recursive: true });
    if (!existsSync(link)) symlinkSync(compiler, link);
    return clone;
  }

  /** An empty project. */
  project(name, manifest = {}) {
    const folder = join(this.folder, 'projects', name.replace(/\W+/g, '-'));
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ private: true, ...manifest }));
    return folder;
  }

  /** A PATH with this Node and no compiler. */
  async pathOf(node) {
    const folder = join(this.folder, 'bin', node.replace(' ', '-'));
    if (!existsSync(folder)) {
      mkdirSync(folder, { recursive: true });
      symlinkSync(await tool(this.top, node), join(folder, 'node'));
      // For scripts of projects that call npm.
      const npm = `#!/bin/sh\nexec node '${await tool(this.top, 'npm 11')}' "$@"\n`;
      writeFileSync(join(folder, 'npm'), npm, { mode: 0o755 });
      for (const name of PROGRAMS) {
        const program = which(name);
        if (program) symlinkSync(program, join(folder, name));
      }
    }
    const found = COMPILERS.filter((name) => which(name, folder));
    if (found.length > 0) throw new Error(`${folder} was to have no compiler, and has ${found.join(', ')}`);
    return folder;
  }

  /** Runs a script by a Node, in a project, without a compiler and without settings of the user's. */
  async node(node, args, options) {
    const path = await this.pathOf(node);
    // For package managers: nothing of the user's configuration, caches of their own.
    const env = {
      npm_config_userconfig: join(this.folder, 'npmrc'), // none
      YARN_GLOBAL_FOLDER: join(this.#cache, 'yarn'),
      YARN_ENABLE_TELEMETRY: '0',
      YARN_ENABLE_IMMUTABLE_INSTALLS: '0',
      XDG_DATA_HOME: join(this.#cache, 'data'), // pnpm's store
      ...options.env,
    };
    return run(join(path, 'node'), args, { ...options, path, env });
  }

  /** A package manager, by the version of Node that it is tried on. */
  async manager(name, node, args, options) {
    return this.node(node, [await tool(this.top, name), ...args], options);
  }

  /** A project in which npm 12 has installed the package: made once, read by many cells. */
  installed() {
    this.#installed ??= (async () => {
      const cwd = this.project('installed');
      await this.manager('npm 12', 'node 24', ['install', '--no-audit', this.tarball], { cwd });
      return cwd;
    })();
    return this.#installed;
  }
  #installed;

  /** Another such project, which has some packages of this tree, and of tools [name, tool], as well. */
  async projectWith(name, { packages = [], tools = [] } = {}) {
    const folder = this.project(name);
    // By hard links: nothing writes into it.
    await run('cp', ['-al', join(await this.installed(), 'node_modules'), folder], { cwd: this.folder });
    const link = (from, name) => {
      const to = join(folder, 'node_modules', name);
      mkdirSync(join(to, '..'), { recursive: true });
      symlinkSync(join(from, name), to);
    };
    for (const name of packages) link(join(this.top, 'node_modules'), name);
    for (const [name, from] of tools) {
      await tool(this.top, from);
      link(toolModules(this.top, from), name);
    }
    return folder;
  }

  /** A file of what was packed. */
  read(path) {
    return readFileSync(join(this.clone, path), 'utf8');
  }

  close() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
