import { spawn } from 'node:child_process';
import { join, resolve as resolvePath } from 'node:path';

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

const TESTS = join(__dirname, '..');

/**
 * Runs a script, named from test/, against the built package until it ends; a script that takes too long is killed
 * (SIGKILL shows).
 */
export function runChild(
  script: string,
  args: readonly string[] = [],
  {
    flags = [],
    shell = '',
    timeoutMs = 50_000,
    env: extra = {},
  }: {
    flags?: readonly string[];
    shell?: string;
    timeoutMs?: number;
    env?: Readonly<Record<string, string>>;
  } = {},
): Promise<Ended> {
  const command = [process.execPath, ...flags, resolvePath(TESTS, script), ...args];
  return new Promise((resolve, reject) => {
    // jest's NODE_OPTIONS and handlers stay out of it.
    const env = { ...process.env, NODE_OPTIONS: '', UV_THREADPOOL_SIZE: '2', ...extra };
    const child = spawn('bash', ['-c', `${shell}${shell && '; '}exec "$@"`, 'bash', ...command], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (text) => {
      stdout += text;
    });
    child.stderr.on('data', (text) => {
      stderr += text;
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** The script must end by itself with code 0, say `ok` and nothing on stderr. */
export async function expectClean(...call: Parameters<typeof runChild>): Promise<void> {
  expect(await runChild(...call)).toEqual({ code: 0, signal: null, stdout: 'ok\n', stderr: '' });
}
