import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Check, checkOptions, fail } from '../check-options.js';
import { packageFolder } from '../native.js';

/** A strict stand-in for a library that this machine may lack: run a process with `env()` and the package loads it in place of the real one. */
export interface Emulator {
  /** The shared library. */
  readonly path: string;
  /**
   * Environment variables for a process: which library to load, and how it behaves. Options are those at the top of the emulator's control.h or settings.h, with or
   * without what all their names begin with. INVALID_ARGUMENT.
   */
  env(options?: Readonly<Record<string, string | number | boolean>>): Record<string, string>;
}

/** What the emulators understand, as their sources say. */
const SETTINGS = {
  CUDA: 'DEVICES MEMORY PINNED BANDWIDTH DELAY_US JITTER_US ATTRIBUTES FAIL STRICT LEAKS VERBOSE',
  CUFILE: 'COMPAT ALLOW_COMPAT REFUSE REFUSE_CODE REQUIRE_DIRECT SHORT OPEN_MS DELAY_US BANDWIDTH FAIL STRICT LEAKS',
  HF3FS:
    'STRICT POISON ROOT LINK EIO_PATH LATENCY_MS BANDWIDTH JOBS THREADS SHUFFLE EAGAIN_EVERY SHORT_EVERY EIO_EVERY SHORT EIO STALL RING_LOST DAEMON_DEAD MEMLOCK FAIL',
};

const scalar: Check = (value, name) => {
  if (!['string', 'number', 'boolean'].includes(typeof value)) fail(name, 'text, a number or a boolean', value);
};

function emulator(
  file: string,
  variable: string,
  library: keyof typeof SETTINGS,
  always: Readonly<Record<string, string>> = {},
): Emulator {
  const folder = packageFolder();
  const candidates = [
    join(folder, 'build', 'cmake', 'emulators', file),
    join(folder, 'prebuilds', 'emulators', `${process.platform}-${process.arch}`, file),
  ];
  const path = candidates.find((candidate) => existsSync(candidate)) ?? candidates[0]!;
  return {
    path,
    env(options = {}) {
      const prefix = `FST_EMU_${library}_`;
      const given = Object.entries(options).map(
        ([name, value]) => [name.startsWith(prefix) ? name.slice(prefix.length) : name, value] as const,
      );
      checkOptions(
        Object.fromEntries(given),
        Object.fromEntries(SETTINGS[library].split(' ').map((name) => [name, scalar])),
      );
      const env: Record<string, string> = { [variable]: path, ...always };
      for (const [name, value] of given) {
        if (value !== undefined) env[prefix + name] = String(typeof value === 'boolean' ? Number(value) : value);
      }
      return env;
    },
  };
}

/**
 * Emulators of CUDA's driver, cuFile and the 3FS client. They are stricter than the real libraries: misuse ends the process with a reason. Example:
 * `spawn('node', ['test.js'], { env: { ...process.env, ...emulators.cuda.env({ DEVICES: 2 }) } })`.
 */
export const emulators: { readonly cuda: Emulator; readonly cufile: Emulator; readonly hf3fs: Emulator } = {
  get cuda() {
    return emulator('libcuda.so.1', 'FASTSAFETENSORS_CUDA_LIB', 'CUDA');
  },
  get cufile() {
    return emulator('libcufile.so.0', 'FASTSAFETENSORS_CUFILE_LIB', 'CUFILE');
  },
  get hf3fs() {
    return emulator('libhf3fs_api_shared.so', 'FASTSAFETENSORS_3FS_LIB', 'HF3FS', {
      HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: 'yes',
    });
  },
};
