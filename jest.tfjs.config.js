/** Against a real tfjs-node, whose path scripts/tfjs-tests.mjs gives. Its addon wants Node's own typed arrays. */
const config = require('./jest.config.js');

module.exports = {
  ...config,
  testEnvironment: './test/support/native-arrays-environment.js',
  testPathIgnorePatterns: [],
  testMatch: ['<rootDir>/test/tfjs-node/**/*.test.ts'],
  moduleNameMapper: {
    '^@tensorflow/tfjs-node$': process.env.FASTSAFETENSORS_TFJS_NODE,
    ...config.moduleNameMapper,
  },
  testTimeout: 120_000,
};
