import { rm } from 'node:fs/promises';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { patience } from '../../src/transfer/budget-limit.js';
import { expectNothingHeld } from './metrics.js';
import { newFolder } from './model-files.js';

// Hooks for tests of budgets: fake devices, and a patience with those who hold tensors that a test may change.

/** A new one for each test. */
export let folder: string;
const before = patience.ms;
beforeEach(async () => {
  useFakeDevices({ copyDelayUs: 20 });
  folder = await newFolder();
});
afterEach(async () => {
  patience.ms = before;
  await rm(folder, { recursive: true });
  await expectNothingHeld();
  useFakeDevices(null);
});
