import { spawn } from 'node:child_process';

/** A cell that cannot run here: its message says why. */
export class Skip extends Error {}

/** Why a cell failed: the command, and what it printed. */
class Failed extends Error {}

/**
 * Runs a command to its end: { code, stdout, stderr, seconds }. Fails unless it ends with `code`, or is of no
 * matter (null). Nothing of npm's own environment reaches it, nor jest's.
 */
export function run(command, args, { cwd, env = {}, path, code = 0, timeoutMs = 240_000 }) {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(npm_|NODE_OPTIONS$|NODE_PATH$|INIT_CWD$|FASTSAFETENSORS_|FST_)/i.test(name),
  );
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd,
      env: { ...Object.fromEntries(inherited), ...(path && { PATH: path }), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true, // so that a run that takes too long ends with what it has started
    });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (text) => (stdout += text));
    child.stderr.on('data', (text) => (stderr += text));
    const timer = setTimeout(() => process.kill(-child.pid, 'SIGKILL'), timeoutMs);
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.on('close', (ended, signal) => {
      clearTimeout(timer);
      const seconds = (performance.now() - started) / 1000;
      if (code === null || ended === code) return resolve({ code: ended, stdout, stderr, seconds });
      const said = `${stdout}${stderr}`.trim().split('\n').slice(-40).join('\n');
      reject(new Failed(`${command} ${args.join(' ')}\nended with ${signal ?? ended}, expected ${code}:\n${said}`));
    });
  });
}
