import { patience } from '../../src/transfer/budget-limit.js';

// Hooks for tests of budgets: fake devices, and a patience with those who hold tensors that a test may change.

export { folder } from './fake-device-hooks.js';

const before = patience.ms;
afterEach(() => {
  patience.ms = before;
});
