/** Temporary files and folders, which say whose they are, so that those of processes that died can be removed. */
import { readFileSync, readlinkSync, rmSync } from 'node:fs';
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** `.fst-REALM-PID-START-UUID.tmp`; a realm is one boot of one machine, and one namespace of process ids in it. */
const NAME = /^\.fst-([0-9a-f]{8}\.\d+)-(\d+)-(\d+)-[0-9a-f-]{36}\.tmp$/;
/** For so long a folder of another realm was not touched whose process is taken for dead. */
const SILENT_MS = 10 * 60_000;

/** How often who keeps a temporary folder for long is to touch it. */
export const TOUCH_MS = SILENT_MS / 10;

const MOST_TRIES = 100;

let own: string | undefined;

/** A path in `folder` that no other file has, for a file or folder that this process renames or removes. */
export function temporaryIn(folder: string): string {
  own ??= `${realm()}-${process.pid}-${processStart(process.pid) ?? 0}`;
  // The global one: it loads node:crypto when it is used, and an import of the package would wait 3 ms for that.
  return join(folder, `.fst-${own}-${crypto.randomUUID()}.tmp`);
}

const atExit = new Set<string>();

/**
 * Has a temporary file or folder removed where this thread exits, as by process.exit(), before the function is called
 * that this returns.
 */
export function removedAtExit(path: string): () => void {
  if (atExit.size === 0) process.on('exit', removeTemporaries);
  atExit.add(path);
  return () => {
    if (atExit.delete(path) && atExit.size === 0) process.off('exit', removeTemporaries);
  };
}

const ENDING: readonly [signal: NodeJS.Signals, number: number][] = [
  ['SIGHUP', 1],
  ['SIGINT', 2],
  ['SIGTERM', 15],
];

/**
 * For a process of our own: it leaves no temporary file where a signal ends it, as Ctrl+C does. Afterwards the signal
 * ends it: a shell's loop over several commands goes on after one that exits.
 */
export function removedOnSignals(): void {
  for (const [signal, number] of ENDING) {
    process.once(signal, () => {
      removeTemporaries();
      process.kill(process.pid, signal);
      process.exit(128 + number); // the first process of a container, which no signal ends
    });
  }
}

/** Removes what is removedAtExit() now. */
export function removeTemporaries(): void {
  // The newest first: a thread may still give it the name of an older one.
  for (const path of [...atExit].reverse()) {
    // Threads may still make a file in a folder that is being emptied.
    for (let tries = 0; tries < MOST_TRIES && !tryToRemove(path); ++tries) {}
  }
}

/** False where there is something in it again. What cannot be removed is removeDead()'s. */
function tryToRemove(path: string): boolean {
  try {
    rmSync(path, { recursive: true, force: true });
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOTEMPTY';
  }
}

/**
 * Removes what processes that have died left of temporaryIn() in a folder. Returns the names of what may belong to a
 * process that lives. One of another machine or container, whose processes cannot be seen, and a thread of this one is
 * dead when its folder was not touched for ten minutes; its files are never removed. Rejects where the folder cannot be
 * listed.
 */
export async function removeDead(folder: string): Promise<string[]> {
  const living: string[] = [];
  for (const name of await readdir(folder)) {
    if (!NAME.test(name)) continue;
    if (!(await isDead(name, join(folder, name)))) living.push(name);
    // It may be another user's, and only theirs to remove.
    else await rm(join(folder, name), { recursive: true, force: true }).catch(() => undefined);
  }
  return living;
}

async function isDead(name: string, path: string): Promise<boolean> {
  const [, itsRealm, pid, start] = NAME.exec(name)!;
  if (itsRealm === realm() && itsRealm !== UNKNOWN) {
    if (!lives(Number(pid), Number(start))) return true;
    if (Number(pid) !== process.pid) return false; // of this process, a thread may have ended
  }
  const found = await stat(path).catch(() => undefined);
  return found?.isDirectory() === true && Date.now() - found.mtimeMs > SILENT_MS;
}

/** Whether the process is there that had this number at this time. */
function lives(pid: number, start: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false; // others: it is another user's
  }
  const found = processStart(pid);
  return found === undefined || found === start;
}

const UNKNOWN = '00000000.0';

function realm(): string {
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8');
    return `${boot.slice(0, 8)}.${readlinkSync('/proc/self/ns/pid').replace(/\D/g, '')}`;
  } catch {
    return UNKNOWN; // no Linux
  }
}

/** Clock ticks from the boot to its start; 0 for one that has ended and was not waited for, undefined if unknown. */
function processStart(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? 0 : Number(fields[19]);
  } catch {
    return undefined;
  }
}
