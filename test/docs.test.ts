import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

// Pages that tell where things are must not outlive a rename. In backticks, a path that begins with one of our folders
// is a file or folder of the tree; the names in backticks that follow it (`file` `Name`, `Other`) stand in that file.

const TOP = join(__dirname, '..');
const FOLDERS = 'adapters|bench|csrc|demo|docs|examples|fixtures|scripts|src|test';
const PATH = new RegExp(`^(?:(?:${FOLDERS})(?:/[\\w.*-]+)*/?|[\\w.-]+\\.(?:json|gyp|js|md|txt)|\\.[\\w./-]+)$`);
const NAME = /^#?\w+(?:(?:::|\.)\w+)?(?:\(\))?$/;

interface Claim {
  readonly path: string;
  readonly name?: string;
}

/** Every path that a page names, and every name that it says stands in a file. Blocks of code are not looked at. */
function claimsOf(page: string): Claim[] {
  const claims: Claim[] = [];
  const prose = page.replace(/^```[\s\S]*?^```/gm, '');
  let path: string | undefined; // of the last claim, while only separators follow
  let end = 0;
  for (const match of prose.matchAll(/`([^`]+)`/g)) {
    const between = prose.slice(end, match.index);
    end = match.index + match[0].length;
    const text = match[1]!.replace(/\s+/g, ' ');
    if (!/^(?:,? |,?\n\s*| and )$/.test(between)) path = undefined;
    if (PATH.test(text) && !text.includes('*')) {
      path = text;
      claims.push({ path });
    } else if (path !== undefined && NAME.test(text)) {
      claims.push({ path, name: text });
    } else {
      path = undefined;
    }
  }
  return claims;
}

/** What a page says that is not so. Files that it has its readers write need not exist: see support/copier-page.ts. */
function untrue(page: string): string[] {
  const added = new Set([...page.matchAll(/^`([\w./-]+)`:\n\n```/gm)].map(([, path]) => path));
  return claimsOf(page).flatMap(({ path, name }) => {
    if (added.has(path)) return [];
    if (!existsSync(join(TOP, path))) return [`${path} does not exist`];
    if (name === undefined) return [];
    const last = name.replace(/\(\)$/, '').split(/::|\./).at(-1)!;
    const stands = new RegExp(`(?<![\\w#])${last}(?!\\w)`).test(readFileSync(join(TOP, path), 'utf8'));
    return stands ? [] : [`${path} has no ${name}`];
  });
}

test.each([
  ['docs/architecture.md', 100],
  ['docs/adding-a-copier.md', 5],
  ['docs/budgets.md', 0],
  ['docs/bundlers.md', 0],
  ['docs/checksums.md', 0],
  ['docs/configuration.md', 1],
  ['docs/devices.md', 0],
  ['docs/files.md', 0],
  ['docs/mapping.md', 20],
  ['docs/from-fastsafetensors.md', 1],
  ['docs/packaging.md', 8],
  ['docs/ranks.md', 0],
  ['docs/saving.md', 0],
  ['docs/sharing.md', 0],
  ['docs/transformers-js.md', 0],
  ['CONTRIBUTING.md', 5],
  ['test/README.md', 5],
])('%s names files and identifiers that exist', (page, atLeast) => {
  const text = readFileSync(join(TOP, page), 'utf8');
  expect(claimsOf(text).length).toBeGreaterThanOrEqual(atLeast);
  expect(untrue(text)).toEqual([]);
});

test('nothing says npx fastsafetensors: outside of a project that is another package', () => {
  const folders = ['src', 'adapters', 'csrc', 'docs', 'examples', 'demo'];
  const files = folders.flatMap((folder) =>
    readdirSync(join(TOP, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && /\.(?:[cm]?[jt]s|h|cc|md|json)$/.test(entry.name))
      .map((entry) => join(entry.parentPath, entry.name)),
  );
  expect(files.length).toBeGreaterThan(300);
  const wrong = [...files, join(TOP, 'README.md'), join(TOP, 'CONTRIBUTING.md')].filter((path) =>
    /npx fastsafetensors(?!-node)/.test(readFileSync(path, 'utf8')),
  );
  expect(wrong).toEqual([]);
});

test('the tables of docs/architecture.md have every folder of src and csrc', () => {
  const page = readFileSync(join(TOP, 'docs', 'architecture.md'), 'utf8');
  const rows = [...page.matchAll(/^\| `(c?src\/[a-z]+)`/gm)].map(([, folder]) => folder!);
  const folders = ['src', 'csrc'].flatMap((top) =>
    readdirSync(join(TOP, top), { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => `${top}/${name}`),
  );
  expect(rows.sort()).toEqual(folders.sort());
});

test('what is wrong in a page is found, over lines and after commas', () => {
  expect(untrue('see `src/no-such.ts`')).toEqual(['src/no-such.ts does not exist']);
  expect(untrue('`src/base/timers.ts` `milliseconds`,\n  `noSuchName`')).toEqual([
    'src/base/timers.ts has no noSuchName',
  ]);
  expect(untrue('`src/base/timers.ts` and elsewhere `noSuchName`')).toEqual([]);
  expect(untrue('`csrc/transfer/loop.h` `Loop::Run`')).toEqual([]);
});
