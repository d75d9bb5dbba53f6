import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { type Check, checkOptions, entriesOf, fail, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { packageFolder } from '../native/addon.js';
import { libcOfProcess } from '../native/missing-addon.js';

/** A strict stand-in for a library, which a process with `env()` in its environment loads in place of the real one. */
export interface Emulator {
  /** The shared library. COPIER_UNAVAILABLE where it is not installed. */
  readonly path: string;
  /**
   * Environment variables for a process: which library to load, and how that behaves. Options are the emulator's
   * settings, with or without their prefix FST_EMU_…_; the README of fastsafetensors-node-emulators tells what each
   * does. FAIL injects failures: with `{ FAIL: 'cuMemAlloc_v2:3:2;execute:1:700' }` the third allocation fails with
   * CUDA_ERROR_OUT_OF_MEMORY and the first copy loses the device. INVALID_ARGUMENT for an unknown option,
   * COPIER_UNAVAILABLE where the library is not installed.
   */
  env(
    options?: Readonly<Record<string, string | number | boolean>> | ReadonlyMap<string, string | number | boolean>,
  ): Record<string, string>;
}

/** The settings that each emulator knows. */
const SETTINGS = {
  CUDA: 'DEVICES MEMORY PINNED BANDWIDTH BANDWIDTHS DELAY_US JITTER_US ATTRIBUTES FAIL STRICT LEAKS VERBOSE',
  CUFILE: 'COMPAT ALLOW_COMPAT REFUSE REFUSE_CODE REQUIRE_DIRECT SHORT OPEN_MS DELAY_US BANDWIDTH FAIL STRICT LEAKS',
  NCCL: 'VERSION BANDWIDTH INIT_MS NOTICE HANG FAIL STRICT',
  HF3FS:
    'STRICT LEFT POISON ROOT LINK EIO_PATH LATENCY_MS BANDWIDTH JOBS THREADS SHUFFLE EAGAIN_EVERY EARLY SHORT_EVERY ' +
    'EIO_EVERY SHORT EIO STALL RING_LOST DAEMON_DEAD DAEMON_STOPPED FORGET MEMLOCK FAIL',
};

const PACKAGE = 'fastsafetensors-node-emulators';

/** Where the package of emulators lies, beside this one or in the project that is worked in. */
function packageOfEmulators(): string | undefined {
  for (const from of [packageFolder(), process.cwd()]) {
    try {
      return dirname(createRequire(join(from, 'package.json')).resolve(`${PACKAGE}/package.json`));
    } catch {} // it is not there
  }
  return undefined;
}

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
    const built = join(packageFolder(), 'build', 'cmake', 'emulators', file);
    if (existsSync(built)) return built;
    const target = `${process.platform}-${process.arch}.${libcOfProcess().name}`;
    const folder = packageOfEmulators();
    const installed = folder && join(folder, 'lib', target, file);
    if (installed && existsSync(installed)) return installed;
    const remedy = existsSync(join(packageFolder(), 'scripts', 'setup.mjs'))
      ? 'in this clone, run: npm run setup'
      : `install the package of this version: npm install --save-dev ${PACKAGE}`;
    const lookedFor = installed ?? `the package ${PACKAGE}`;
    throw new FastSafetensorsError(
      'COPIER_UNAVAILABLE',
      `there is no emulator ${file} for ${target}; looked for ${built} and ${lookedFor}; ${remedy}`,
    );
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
 * Emulators of CUDA's driver, cuFile, NCCL and the 3FS client, of the package fastsafetensors-node-emulators; a clone
 * has its own. They are stricter than the real libraries: misuse ends the process with a reason.
 *
 * Example: `spawn('node', ['test.js'], { env: { ...process.env, ...emulators.cuda.env({ DEVICES: 2 }) } })`.
 */
export const emulators: {
  readonly cuda: Emulator;
  readonly cufile: Emulator;
  readonly nccl: Emulator;
  readonly hf3fs: Emulator;
} = {
  cuda: emulator('libcuda.so.1', 'FASTSAFETENSORS_CUDA_LIB', 'CUDA'),
  cufile: emulator('libcufile.so.0', 'FASTSAFETENSORS_CUFILE_LIB', 'CUFILE'),
  nccl: emulator('libnccl.so.2', 'FASTSAFETENSORS_NCCL_LIB', 'NCCL'),
  hf3fs: emulator('libhf3fs_api_shared.so', 'FASTSAFETENSORS_3FS_LIB', 'HF3FS', {
    HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: 'yes',
  }),
};
