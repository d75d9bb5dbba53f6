// The timeout of this project's tests: jest.config.js.
jest.setTimeout(globalThis.TEST_TIMEOUT_MS);
