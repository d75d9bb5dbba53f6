/** Loader tests on the emulated GPU; started by test/support/cuda-loaders.ts with the emulators in its environment. */
const base = require('./jest.config.js');

module.exports = {
  ...base,
  moduleNameMapper: {
    ...base.moduleNameMapper,
    '^fastsafetensors-node$': '<rootDir>/test/support/emulated/index.ts',
    '^fastsafetensors-node/testing$': '<rootDir>/test/support/emulated/testing.ts',
  },
};
