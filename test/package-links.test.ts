import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { basename, join, posix } from 'node:path';
import ts from 'typescript';

// What is in the package names only what is there, too: links of its pages lead to a packed file, and comments of its
// declarations and scripts name none but packed ones and sources of source.tar.br.

const TOP = join(__dirname, '..');
const FOLDERS = 'adapters|bench|csrc|demo|docs|examples|fixtures|packages|scripts|src|test';

/** The files that npm packs of a folder. */
function packed(folder: string): string[] {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [{ files }] = JSON.parse(execFileSync('npm', args, { cwd: join(TOP, folder), encoding: 'utf8' }));
  return files.map(({ path }: { path: string }) => path);
}

/** What a page says as GitHub and npm show it: without code. */
const prose = (page: string) => page.replace(/^```[\s\S]*?^```/gm, '').replace(/`[^`]*`/g, '');

/** The anchors of a page: of each heading its words in lower case, with hyphens between. */
const anchorsOf = (page: string) =>
  [...page.replace(/^```[\s\S]*?^```/gm, '').matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  );

/** Relative links that lead nowhere, among `files`; `read` gives the text of one. */
function dead(page: string, files: readonly string[], read: (path: string) => string): string[] {
  const text = prose(read(page));
  const links = [...text.matchAll(/\]\(([^)\s]+)\)/g), ...text.matchAll(/^\[[^\]]+\]:\s*(\S+)/gm)].map(([, to]) => to!);
  return links
    .filter((to) => !/^[a-z]+:/i.test(to))
    .filter((to) => {
      const [path, anchor] = to.split('#') as [string, string?];
      const target = path ? posix.join(posix.dirname(page), path) : page;
      if (!files.some((file) => file === target || file.startsWith(`${target.replace(/\/$/, '')}/`))) return true;
      return anchor !== undefined && !anchorsOf(read(target)).includes(anchor);
    })
    .map((to) => `${page}: ${to}`);
}

/** Files that a text names and that are neither packed nor among the sources of source.tar.br. */
function unshipped(text: string, files: readonly string[], sources: readonly string[]): string[] {
  const paths = [...text.matchAll(new RegExp(`(?<![\\w./-])(?:${FOLDERS})/[\\w./*-]*\\w`, 'g'))].map(([path]) => path);
  const headers = [...text.matchAll(/(?<![\w./-])\w+\.(?:h|cc)\b/g)].map(([name]) => name);
  const known = [...files, ...sources];
  return [
    ...paths.filter((path) => !known.some((file) => file === path || file.startsWith(`${path}/`))),
    ...headers.filter((name) => !sources.some((file) => basename(file) === name)),
  ];
}

/** As scripts/dist.mjs packSource() takes them. */
const sources = execFileSync('git', ['ls-files', '-co', '--exclude-standard', 'csrc', ':!csrc/emulators'], {
  cwd: TOP,
  encoding: 'utf8',
})
  .split('\n')
  .filter((path) => path && existsSync(join(TOP, path)));

test.each([
  ['.', 8],
  ['packages/emulators', 1],
])('links of the pages in the package of %s lead to files and headings in it', (folder, atLeast) => {
  const files = packed(folder);
  const pages = files.filter((path) => path.endsWith('.md'));
  expect(pages.length).toBeGreaterThanOrEqual(atLeast);
  expect(pages.flatMap((page) => dead(page, files, (path) => readFileSync(join(TOP, folder, path), 'utf8')))).toEqual(
    [],
  );
});

test('what is packed imports only what is packed', () => {
  const files = new Set(packed('.'));
  const modules = [...files].filter((path) => /^dist\/.*\.m?[jt]s$/.test(path));
  expect(modules.length).toBeGreaterThan(150);
  const missing = modules.flatMap((path) => {
    const { importedFiles } = ts.preProcessFile(readFileSync(join(TOP, path), 'utf8'), true, true);
    return importedFiles
      .filter(({ fileName }) => fileName.startsWith('.'))
      .map(({ fileName }) => posix.join(posix.dirname(path), fileName))
      .map((to) => (/\.d\.m?ts$/.test(path) ? to.replace(/\.(m?)js$/, '.d.$1ts') : to))
      .filter((to) => !files.has(to))
      .map((to) => `${path}: ${to}`);
  });
  expect(missing).toEqual([]);
});

test('comments of declarations and scripts name no file that is not in the package', () => {
  const files = packed('.');
  const texts = files.filter((path) => /\.d\.m?ts$|^scripts\/|\.schema\.json$/.test(path));
  expect(texts.length).toBeGreaterThan(80);
  const found = texts.flatMap((path) =>
    unshipped(readFileSync(join(TOP, path), 'utf8'), files, sources).map((name) => `${path}: ${name}`),
  );
  expect(found).toEqual([]);
});

test('a dead link, a dead anchor and the name of a file that is not there are found', () => {
  const pages: Record<string, string> = {
    'README.md':
      '[a](docs/a.md) [b](docs/b.md) [c](docs/a.md#one-two) [d](docs/a.md#three) [e](https://e.org) `[f](f)`',
    'docs/a.md': '# One two\n[up](../README.md) [all](.)\n\n[ref]: ../none.md\n',
  };
  const read = (path: string) => pages[path]!;
  expect(Object.keys(pages).flatMap((page) => dead(page, Object.keys(pages), read))).toEqual([
    'README.md: docs/b.md',
    'README.md: docs/a.md#three',
    'docs/a.md: ../none.md',
  ]);
  const text = 'see csrc/a.h, csrc/b.h, a.h, b.h; x/src/io.ts, ../src/up.js; test/t.test.ts, docs/a.md';
  expect(unshipped(text, Object.keys(pages), ['csrc/a.h'])).toEqual(['csrc/b.h', 'test/t.test.ts', 'b.h']);
});
