// Bundles of an application, with the setting of docs/bundlers.md and without it.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hostTarget, prebuiltPaths } from '../../../scripts/prebuild.mjs';
import { tool, toolModules, versionOf } from '../tools.mjs';
import { addUse, said } from './installs.mjs';

const PAGE = 'docs/bundlers.md';

/** The code block of a bundler on the page: its configuration, or its command line. */
function setting(stage, name) {
  const block = new RegExp(`^## ${name}\\n[\\s\\S]*?^\`\`\`\\w+\\n([\\s\\S]*?)^\`\`\``, 'm').exec(stage.read(PAGE));
  if (!block) throw new Error(`${PAGE} has no block for ${name}`);
  return block[1];
}

/** Its configuration, or one that keeps another package outside. */
const config = (stage, name, external) =>
  external ? setting(stage, name) : setting(stage, name).replace('fastsafetensors-node', 'no-such-package');

/** Each builds app.mjs, and returns its bundle. */
const BUNDLERS = {
  async esbuild(stage, cwd, external) {
    let [, ...args] = config(stage, 'esbuild', external).trim().split(/\s+/); // esbuild app.mjs --bundle …
    // esbuild bundles CommonJS into ES modules only where nothing requires a module of Node's.
    if (!external) args = args.map((arg) => arg.replace('app.mjs', 'use.cjs').replace('=esm', '=cjs'));
    await stage.node('node 24', [await tool(stage.top, 'esbuild'), ...args], { cwd });
    return external ? 'out/app.mjs' : 'out/use.cjs';
  },
  async webpack(stage, cwd, external) {
    await tool(stage.top, 'webpack');
    writeFileSync(join(cwd, 'webpack.config.cjs'), config(stage, 'webpack', external));
    symlinkSync(join(toolModules(stage.top, 'webpack'), 'webpack'), join(cwd, 'node_modules', 'webpack'));
    // What webpack-cli does: it is one more package and brings nothing else.
    const build = `
      const config = { mode: 'production', ...require('./webpack.config.cjs') };
      require('webpack')(config, (error, stats) => {
        if (error || stats.hasErrors()) { console.error(String(error ?? stats)); process.exit(1); }
      });`;
    writeFileSync(join(cwd, 'build.cjs'), build);
    await stage.node('node 24', ['build.cjs'], { cwd });
    return 'out/app.mjs';
  },
  async rollup(stage, cwd, external) {
    const rollup = await tool(stage.top, 'rollup');
    writeFileSync(join(cwd, 'rollup.config.mjs'), config(stage, 'rollup', external));
    symlinkSync(join(toolModules(stage.top, 'rollup'), '@rollup'), join(cwd, 'node_modules', '@rollup'));
    await stage.node('node 24', [rollup, '--config', '--silent'], { cwd });
    return 'out/app.mjs';
  },
};

/** What a bundle says when it has swallowed the package. */
const BUNDLED = /ADDON_MISSING|a bundler has copied it/g;

const bundler = (name, external) => ({
  name: `${name}${external ? '' : ' without the setting'}`,
  long: name === 'webpack' && !external,
  async run(stage) {
    const cwd = await stage.projectWith(this.name);
    addUse(cwd);
    writeFileSync(join(cwd, 'app.mjs'), readFileSync(join(cwd, 'use.mjs')));
    const bundle = await BUNDLERS[name](stage, cwd, external);
    if (external) return `${versionOf(name)}: ${said(await stage.node('node 24', [bundle], { cwd }))}`;
    const { code, stdout, stderr } = await stage.node('node 24', [bundle], { cwd, code: null });
    const found = new Set(stderr.match(BUNDLED));
    if (code !== 1 || found.size !== 2)
      throw new Error(`expected code 1 and ${BUNDLED}, found ${code}:\n${stdout}${stderr.slice(-4000)}`);
    return `${versionOf(name)}: ${[...found].join(', ')}`;
  },
});

/** As a standalone Next.js does it: what a program needs is traced and copied to where there is nothing else. */
const nft = {
  name: 'nft',
  async run(stage) {
    const cwd = await stage.projectWith(this.name);
    addUse(cwd);
    const outputs = [];
    for (const entry of ['use.mjs', 'use.cjs']) {
      await stage.node('node 24', [await tool(stage.top, 'nft'), 'build', entry], { cwd });
      const alone = join(stage.folder, 'traced', entry.replace('.', '-'));
      mkdirSync(join(alone, '..'), { recursive: true });
      renameSync(join(cwd, 'dist'), alone);
      outputs.push(said(await stage.node('node 24', [entry], { cwd: alone })));
      const installed = join(alone, 'node_modules', 'fastsafetensors-node');
      const [binary] = prebuiltPaths(hostTarget(), 'addon');
      if (!existsSync(join(installed, binary))) throw new Error(`${binary} was not taken along`);
      const [platform] = hostTarget().split('.');
      const others = readdirSync(join(installed, 'prebuilds')).filter((name) => name !== platform);
      if (others.length > 0) throw new Error(`binaries of other platforms were taken along: ${others.join()}`);
      // What it starts as a process of its own is there as well.
      const code = "require('fastsafetensors-node').doctor().then((report) => console.log(JSON.stringify(report)))";
      const { checks } = JSON.parse((await stage.node('node 24', ['-e', code], { cwd: alone })).stdout);
      const broken = checks.filter(({ detail }) => /MODULE_NOT_FOUND|Cannot find module/.test(detail));
      if (checks.length === 0 || broken.length > 0) throw new Error(`doctor lacks files: ${JSON.stringify(broken)}`);
    }
    return `@vercel/nft ${versionOf('nft')}, run where nothing else is: ${outputs.join('; ')}; doctor`;
  },
};

export const bundlers = [...Object.keys(BUNDLERS).flatMap((name) => [bundler(name, true), bundler(name, false)]), nft];
