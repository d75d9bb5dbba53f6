import { main } from '../../src/cli/main.js';

/** Runs one command line in this process, whose exit code stays what it was. */
export async function runCli(...args: string[]) {
  let stdout = '';
  let stderr = '';
  const before = process.exitCode;
  process.exitCode = undefined;
  const spies = [
    jest.spyOn(process.stdout, 'write').mockImplementation((text) => {
      stdout += text;
      return true;
    }),
    jest.spyOn(process.stderr, 'write').mockImplementation((text) => {
      stderr += text;
      return true;
    }),
  ];
  try {
    await main(['node', 'fastsafetensors', ...args]);
    return { stdout, stderr, exitCode: process.exitCode ?? 0 };
  } finally {
    for (const spy of spies) spy.mockRestore();
    process.exitCode = before;
  }
}
