import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type Check, checkOptions, entriesOf, fail, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { packageFolder } from '../native/addon.js';

/** A strict stand-in for a library, which a process with `env()` in its environment loads in place of the real one. */
export interface Emulator {
  /** The shared library. COPIER_UNAVAILABLE where it was not built. */
  readonly path: string;
  /**
   * Environment variables for a process: which library to load, and how that behaves. Options are the emulator's
   * settings, with or without their prefix FST_EMU_…_; control.h or settings.h of csrc/emulators/ tells what each does.
   * FAIL injects failures: with `{ FAIL: 'cuMemAlloc_v2:3:2;execute:1:700' }` the third allocation fails with
   * CUDA_ERROR_OUT_OF_MEMORY and the first copy loses the device. INVALID_ARGUMENT for an unknown option,
   * COPIER_UNAVAILABLE where the library was not built.
   */
  env(
    options?: Readonly<Record<string, string | number | boolean>> | ReadonlyMap<string, string | number | boolean>,
  ): Record<string, string>;
}

/** The settings that each emulator knows. */
const SETTINGS = {
  CUDA: 'DEVICES MEMORY PINNED BANDWIDTH DELAY_US JITTER_US ATTRIBUTES FAIL STRICT LEAKS VERBOSE',
  CUFILE: 'COMPAT ALLOW_COMPAT REFUSE REFUSE_CODE REQUIRE_DIRECT SHORT OPEN_MS DELAY_US BANDWIDTH FAIL STRICT LEAKS',
  HF3FS:
    'STRICT LEFT POISON ROOT LINK EIO_PATH LATENCY_MS BANDWIDTH JOBS THREADS SHUFFLE EAGAIN_EVERY EARLY SHORT_EVERY ' +
    'EIO_EVERY SHORT EIO STALL RING_LOST DAEMON_DEAD DAEMON_STOPPED FORGET MEMLOCK FAIL',
};

const scalar: Check = (value, name) => {
  if (!['string', 'number', 'boolean'].includes(typeof value)) fail(name, 'text, a number or a boolean', value);
};

function emulator(
  file: string,
  variable: string,
  settings: keyof typeof SETTINGS,
  always: Readonly<Record<string, string>> = {},
): Emulator {
  const library = (): string => {
    const candidates = [
      join(packageFolder(), 'build', 'cmake', 'emulators', file),
      join(packageFolder(), 'prebuilds', 'emulators', `${process.platform}-${process.arch}`, file),
    ];
    const found = candidates.find((candidate) => existsSync(candidate));
    if (found !== undefined) return found;
    const message =
      `the emulator ${file} is not built: it comes with a clone of the package (\`npm run setup\`), not with an ` +
      `installation from source; looked for ${candidates.join(' and ')}`;
    throw new FastSafetensorsError('COPIER_UNAVAILABLE', message);
  };
  return {
    get path() {
      return library();
    },
    env(options = {}) {
      const prefix = `FST_EMU_${settings}_`;
      takesAtMost(1, arguments, 'env');
      const given = entriesOf<string, string | number | boolean>(options, 'env', 'an object or a Map of settings').map(
        ([name, value]) => [name.startsWith(prefix) ? name.slice(prefix.length) : name, value] as const,
      );
      const checks = Object.fromEntries(SETTINGS[settings].split(' ').map((name) => [name, scalar]));
      checkOptions(Object.fromEntries(given), checks);
      const env: Record<string, string> = { [variable]: library(), ...always };
      for (const [name, value] of given) {
        if (value !== undefined) env[prefix + name] = String(typeof value === 'boolean' ? Number(value) : value);
      }
      return env;
    },
  };
}

/**
 * Emulators of CUDA's driver, cuFile and the 3FS client. They are stricter than the real libraries: misuse ends the
 * process with a reason.
 *
 * Example: `spawn('node', ['test.js'], { env: { ...process.env, ...emulators.cuda.env({ DEVICES: 2 }) } })`.
 */
export const emulators: { readonly cuda: Emulator; readonly cufile: Emulator; readonly hf3fs: Emulator } = {
  cuda: emulator('libcuda.so.1', 'FASTSAFETENSORS_CUDA_LIB', 'CUDA'),
  cufile: emulator('libcufile.so.0', 'FASTSAFETENSORS_CUFILE_LIB', 'CUFILE'),
  hf3fs: emulator('libhf3fs_api_shared.so', 'FASTSAFETENSORS_3FS_LIB', 'HF3FS', {
    HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: 'yes',
  }),
};
