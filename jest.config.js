const { relative, resolve } = require('node:path');

// One config for all tests. Plain `npx jest` runs the project `unit`; another project takes part when an argument is
// a path in its folder (`npx jest test/long/install.test.ts`) or when projects are selected by name
// (`npx jest --selectProjects long`).

// Which binary is tested, where that is not the clone's own build. Tests start processes in other folders.
const binary = process.env.FASTSAFETENSORS_NATIVE;
if (binary) process.env.FASTSAFETENSORS_NATIVE = resolve(binary);

const moduleNameMapper = {
  '^fastsafetensors-node$': '<rootDir>/src/index.ts',
  '^fastsafetensors-node/testing$': '<rootDir>/src/testing/index.ts',
  '^fastsafetensors-node/tfjs$': '<rootDir>/adapters/tfjs/index.ts',
  '^fastsafetensors-node/ort$': '<rootDir>/adapters/ort/index.ts',
  '^(\\.{1,2}/.*)\\.js$': '$1',
};

/** A project with what all have in common. jest knows a timeout for all projects only: a setup file sets each one's. */
const project = (name, { timeoutMs = 60_000, ...options }) => ({
  displayName: name,
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  transform: { '^.+\\.ts$': ['ts-jest', { tsconfig: 'test/tsconfig.json', transpilation: true }] },
  moduleNameMapper,
  globals: { TEST_TIMEOUT_MS: timeoutMs },
  setupFilesAfterEnv: ['<rootDir>/test/support/set-timeout.js'],
  ...options,
});

const unitTests = {
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  testPathIgnorePatterns: ['/test/gpu/', '/test/long/', '/test/tfjs-node/'],
};

/** The tests of `npm test`, over the sources. */
const unit = project('unit', unitTests);

/** Projects with a folder of their own. */
const byFolder = [
  /** What takes minutes: `npm run test:long`. */
  project('long', { testMatch: ['<rootDir>/test/long/**/*.test.ts'], timeoutMs: 600_000 }),
  /**
   * A real GPU, its driver and, where they are installed, cuFile and ONNX Runtime's CUDA provider: `npm run test:gpu`.
   */
  project('gpu', {
    testMatch: ['<rootDir>/test/gpu/**/*.test.ts'],
    globalSetup: '<rootDir>/test/gpu/global-setup.js',
    setupFiles: ['<rootDir>/test/gpu/environment.js'],
    timeoutMs: 300_000,
  }),
  /** A real tfjs-node, whose path scripts/tfjs-tests.mjs gives. Its addon needs Node's own typed arrays. */
  project('tfjs-node', {
    testMatch: ['<rootDir>/test/tfjs-node/**/*.test.ts'],
    testEnvironment: '<rootDir>/test/support/native-arrays-environment.js',
    moduleNameMapper: {
      '^@tensorflow/tfjs-node$': process.env.FASTSAFETENSORS_TFJS_NODE ?? '@tensorflow/tfjs-node',
      ...moduleNameMapper,
    },
    timeoutMs: 120_000,
  }),
];

/**
 * The unit tests on another device: test/support/cuda-loaders.ts starts them, with the emulators in the environment.
 */
const emulatedCuda = project('emulated-cuda', {
  ...unitTests,
  moduleNameMapper: {
    ...moduleNameMapper,
    '^fastsafetensors-node$': '<rootDir>/test/support/emulated/index.ts',
    '^fastsafetensors-node/testing$': '<rootDir>/test/support/emulated/testing.ts',
  },
});

const args = process.argv.slice(2).map((arg) => (arg.startsWith(__dirname) ? relative(__dirname, arg) : arg));
const byName = args.some((arg) => /^--(select|ignore)Projects\b/.test(arg));
const named = byFolder.filter(({ displayName }) =>
  args.some((arg) => new RegExp(`^(\\./)?test/${displayName}(/|$)`).test(arg)),
);

/** Tests of a GPU run one file at a time: they measure its memory. */
const serial = named.some(({ displayName }) => displayName === 'gpu') || args.some((arg) => /(^|=)gpu$/.test(arg));

module.exports = {
  testSequencer: '<rootDir>/test/support/longest-first.js',
  projects: byName ? [unit, ...byFolder, emulatedCuda] : [unit, ...named],
  ...(serial ? { maxWorkers: 1 } : {}),
};
