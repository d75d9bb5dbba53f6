/** Tests on a real GPU, its driver and, where they are installed, cuFile and ONNX Runtime's CUDA provider: `npm run test:gpu`. */
process.env.FST_TEST_GPUS = '1';

module.exports = {
  ...require('./jest.config.js'),
  testPathIgnorePatterns: [],
  testMatch: ['<rootDir>/test/gpu/**/*.test.ts'],
  globalSetup: '<rootDir>/test/gpu/global-setup.js',
  testTimeout: 300_000,
  maxWorkers: 1,
};
