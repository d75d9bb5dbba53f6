import { renameSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type Entry, encodeFile } from './model-files.js';

/** What may become of a file of these entries, over 5000 bytes, once it was opened: rows of test.each. */
export function fileChanges(entries: readonly Entry[]): [string, (path: string) => void][] {
  return [
    ['touched', (path) => utimesSync(path, new Date(), new Date(Date.now() + 5000))],
    ['cut short', (path) => truncateSync(path, 5000)],
    [
      'written over',
      (path) => writeFileSync(path, encodeFile(entries.map((e) => ({ ...e, bytes: e.bytes.map((b) => ~b) })))),
    ],
    [
      'replaced',
      (path) => {
        const next = join(dirname(path), 'new');
        writeFileSync(next, encodeFile(entries));
        renameSync(next, path);
      },
    ],
  ];
}
