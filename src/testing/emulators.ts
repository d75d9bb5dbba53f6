import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { FastSafetensorsError } from '../errors.js';
import { packageFolder } from '../native.js';

/** A strict stand-in for a library that this machine may lack: run a process with `env()` and the package loads it in place of the real one. */
export interface Emulator {
  /** The shared library. COPIER_UNAVAILABLE where it was not built. */
  readonly path: string;
  /**
   * Environment variables for a process: which library to load, and how it behaves. Options are those of the emulator's control.h (csrc/emulators/), by their
   * environment names with or without the prefix. The GPU: DEVICES, MEMORY, PINNED, BANDWIDTH, DELAY_US, JITTER_US, ATTRIBUTES, FAIL, STRICT, LEAKS, VERBOSE;
   * cuFile: COMPAT, ALLOW_COMPAT, REFUSE, REFUSE_CODE, REQUIRE_DIRECT, SHORT, OPEN_MS, DELAY_US, BANDWIDTH, FAIL, STRICT, LEAKS. FAIL injects failures, as
   * `{ FAIL: 'cuMemAlloc_v2:3:2;execute:1:700' }`: the third allocation fails with CUDA_ERROR_OUT_OF_MEMORY, the first copy loses the device.
   */
  env(options?: Readonly<Record<string, string | number | boolean>>): Record<string, string>;
}

function emulator(
  file: string,
  variable: string,
  prefix: string,
  always: Readonly<Record<string, string>> = {},
): Emulator {
  const folder = packageFolder();
  const candidates = [
    join(folder, 'build', 'cmake', 'emulators', file),
    join(folder, 'prebuilds', 'emulators', `${process.platform}-${process.arch}`, file),
  ];
  const found = candidates.find((candidate) => existsSync(candidate));
  const there = (): string => {
    if (found !== undefined) return found;
    throw new FastSafetensorsError(
      'COPIER_UNAVAILABLE',
      `the emulator ${file} is not built: it comes with a clone of the package (\`npm run setup\`), not with an installation from source; looked for ${candidates.join(' and ')}`,
    );
  };
  return {
    get path() {
      return there();
    },
    env(options = {}) {
      const path = there();
      const env: Record<string, string> = { [variable]: path, ...always };
      for (const [name, value] of Object.entries(options)) {
        env[name.startsWith(prefix) ? name : prefix + name] =
          typeof value === 'boolean' ? String(Number(value)) : String(value);
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
    return emulator('libcuda.so.1', 'FASTSAFETENSORS_CUDA_LIB', 'FST_EMU_CUDA_');
  },
  get cufile() {
    return emulator('libcufile.so.0', 'FASTSAFETENSORS_CUFILE_LIB', 'FST_EMU_CUFILE_');
  },
  get hf3fs() {
    return emulator('libhf3fs_api_shared.so', 'FASTSAFETENSORS_3FS_LIB', 'FST_EMU_HF3FS_', {
      HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: 'yes',
    });
  },
};
