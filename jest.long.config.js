module.exports = {
  ...require('./jest.config.js'),
  testPathIgnorePatterns: [],
  testMatch: ['<rootDir>/test/long/**/*.test.ts'],
  testTimeout: 600_000,
};
