/** Runs probes in processes of their own: a library that crashes, or a mount that hangs, then ends only its probe. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { after, held } from '../base/timers.js';
import { packageFolder } from '../native/addon.js';
import type { Probes } from './probe.js';

/** What a probe answered, or why it did not. */
export type Answer<T> = { readonly value: T; readonly failure?: undefined } | { readonly failure: string };

/** Longer than cuFile's driver takes to open. */
const LIMIT_MS = 30_000;
const MAX_STDERR = 64 * 1024;

/** Never rejects. A process that does not answer is killed; one that cannot be killed is left behind. */
export function runProbe<Name extends keyof Probes>(
  name: Name,
  args: Parameters<Probes[Name]>,
  limitMs = LIMIT_MS,
): Promise<Answer<Awaited<ReturnType<Probes[Name]>>>> {
  return held(ask(name, args, limitMs));
}

function ask<T>(name: string, args: readonly unknown[], limitMs: number): Promise<Answer<T>> {
  return new Promise((resolve) => {
    const script = join(packageFolder(), 'dist', 'src', 'doctor', 'probe.js');
    const child = spawn(process.execPath, [script, name, JSON.stringify(args)], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      execArgv: process.versions.pnp ? ['--require', require.resolve('pnpapi')] : [],
      env: { ...process.env, ELECTRON_RUN_AS_NODE: '1' }, // there execPath is the application
    } as Parameters<typeof spawn>[2]);
    let answer: Answer<T> | undefined;
    let stderr = '';
    const end = (result: Answer<T>): void => {
      stop();
      resolve(result);
      child.stderr?.destroy();
      if (child.connected) child.disconnect();
      child.unref();
    };
    const stop = after(limitMs, () => {
      child.kill('SIGKILL');
      end({ failure: `no answer within ${limitMs / 1000} s` });
    });
    child.stderr?.on('data', (text) => {
      if (stderr.length < MAX_STDERR) stderr += text;
    });
    child.on('error', (error) => end({ failure: `its probe could not be started: ${error.message}` }));
    child.on('message', (message) => {
      answer = message as Answer<T>;
    });
    child.on('close', (code, signal) => {
      const said = lastLine(stderr);
      const how = signal ? `crashed (${signal})` : `ended the process with code ${code}`;
      // What crashes after it has answered does not work either.
      if (code !== 0 || !answer) end({ failure: `${how}${said && `: ${said}`}` });
      else end(answer);
    });
  });
}

function lastLine(text: string): string {
  return text.trim().split('\n').at(-1)!.slice(0, 500);
}
