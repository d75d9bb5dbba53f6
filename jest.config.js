/** Unit and acceptance tests over the sources; what takes minutes is in jest.long.config.js, what needs a GPU in jest.gpu.config.js. */
module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  testPathIgnorePatterns: ['/test/gpu/', '/test/long/', '/test/tfjs-node/'],
  transform: { '^.+\\.ts$': ['ts-jest', { tsconfig: 'test/tsconfig.json', transpilation: true }] },
  moduleNameMapper: {
    '^fastsafetensors-node$': '<rootDir>/src/index.ts',
    '^fastsafetensors-node/testing$': '<rootDir>/src/testing/index.ts',
    '^fastsafetensors-node/tfjs$': '<rootDir>/adapters/tfjs/index.ts',
    '^fastsafetensors-node/ort$': '<rootDir>/adapters/ort/index.ts',
    '^(\\.{1,2}/.*)\\.js$': '$1',
  },
  testTimeout: 60_000,
};
