import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Edit {
  readonly path: string;
  readonly find: string;
  readonly replace: string;
}

/** What docs/adding-a-copier.md has for readers to type. */
export interface CopierPage {
  /** The TypeScript of "One of your own". */
  readonly own: string;
  /** New files by path: blocks that follow a line with nothing but `path`: */
  readonly files: ReadonlyMap<string, string>;
  /** Hunks of the diffs: old lines, which stand once in the file, and what takes their place. */
  readonly edits: readonly Edit[];
}

export function readCopierPage(top: string): CopierPage {
  const page = readFileSync(join(top, 'docs', 'adding-a-copier.md'), 'utf8');
  const own = /^## One of your own\n[\s\S]*?```ts\n([\s\S]*?)```/m.exec(page)![1]!;
  const files = new Map(
    [...page.matchAll(/^`([\w./-]+)`:\n\n```\w+\n([\s\S]*?)```/gm)].map(([, path, text]) => [path!, text!]),
  );
  const edits = [...page.matchAll(/^```diff\n--- a\/(.*)\n\+\+\+ b\/.*\n([\s\S]*?)```/gm)].flatMap(([, path, hunks]) =>
    hunks!
      .split(/^@@\n/m)
      .filter(Boolean)
      .map((hunk) => ({ path: path!, find: side(hunk, ' -'), replace: side(hunk, ' +') })),
  );
  return { own, files, edits };
}

/** The lines of a hunk with these marks, without them. */
function side(hunk: string, marks: string): string {
  const lines = hunk.split('\n').filter((line) => line !== '' && marks.includes(line[0]!));
  return lines.map((line) => `${line.slice(1)}\n`).join('');
}

/** How often an edit's old lines stand in its file: once where the page is right. */
export function fits(top: string, { path, find }: Edit): number {
  return readFileSync(join(top, path), 'utf8').split(find).length - 1;
}

/** Does to the tree what the page says. */
export function applyCopierPage(top: string, { files, edits }: CopierPage): void {
  for (const [path, text] of files) writeFileSync(join(top, path), text);
  for (const { path, find, replace } of edits) {
    const text = readFileSync(join(top, path), 'utf8');
    writeFileSync(
      join(top, path),
      text.replace(find, () => replace),
    );
  }
}
