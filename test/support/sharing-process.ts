import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** A process of handles.child.cjs. Its lines are JSON; it ends by itself when its input does. */
export class SharingProcess {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #exit: Promise<unknown[]>;
  #errors = '';

  /** `fd`: a descriptor of ours that it gets as its number 3. */
  constructor(args: readonly string[], { fd, env = {} }: { fd?: number; env?: Record<string, string> } = {}) {
    const script = join(__dirname, '..', 'handles.child.cjs');
    this.process = spawn(process.execPath, [script, ...args], {
      env: { ...process.env, NODE_OPTIONS: '', ...env },
      stdio: ['pipe', 'pipe', 'pipe', ...(fd === undefined ? [] : [fd])],
    });
    this.#exit = once(this.process, 'close');
    this.#lines = createInterface({ input: this.process.stdout! })[Symbol.asyncIterator]();
    this.process.stderr!.on('data', (text) => {
      this.#errors += text;
    });
  }

  async line<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) {
      await this.#exit;
      throw new Error(`the process ended: ${this.#errors}`);
    }
    return JSON.parse(value) as T;
  }

  /** SIGKILL, and its end. */
  async kill(): Promise<void> {
    this.process.kill('SIGKILL');
    await this.#exit;
  }

  /** Ends its input; its last line. It must end with code 0 and have nothing to say on stderr. */
  async end(): Promise<unknown> {
    this.process.stdin!.end();
    const line = this.process.spawnargs.includes('importer') ? await this.line() : undefined;
    const [code] = await this.#exit;
    if (code !== 0 || this.#errors) throw new Error(`code ${code}: ${this.#errors}`);
    return line;
  }
}

/** Processes that have a file open or mapped, by its inode. */
export function usersOf(ino: number): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const opened = readdirSync(`/proc/${pid}/fd`).some((fd) => {
          try {
            return statSync(`/proc/${pid}/fd/${fd}`).ino === ino;
          } catch {
            return false;
          }
        });
        return opened || new RegExp(` ${ino} +/memfd:`).test(readFileSync(`/proc/${pid}/maps`, 'utf8'));
      } catch {
        return false; // it has ended
      }
    });
}

/** Bytes of a memfd, by its inode, that a process has in memory: all, and its share of what several have (Pss). */
export function mappedOf(pid: number, ino: number): { rss: number; pss: number } {
  const found = { rss: 0, pss: 0 };
  let inside = false;
  for (const line of readFileSync(`/proc/${pid}/smaps`, 'utf8').split('\n')) {
    if (/^[\da-f]+-[\da-f]+ /.test(line)) inside = new RegExp(` ${ino} +/memfd:`).test(line);
    const [, field, kib] = /^(Rss|Pss): +(\d+) kB$/.exec(line) ?? [];
    if (inside && field) found[field === 'Rss' ? 'rss' : 'pss'] += Number(kib) * 1024;
  }
  return found;
}
