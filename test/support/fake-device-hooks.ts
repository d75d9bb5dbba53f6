import { rm } from 'node:fs/promises';
import { useFakeDevices } from 'fastsafetensors-node/testing';
import { expectNothingHeld } from './metrics.js';
import { newFolder } from './model-files.js';

// Hooks for tests of loads to fake devices.

/** A new one for each test. */
export let folder: string;
beforeEach(async () => {
  useFakeDevices({ copyDelayUs: 20 });
  folder = await newFolder();
});
afterEach(async () => {
  await rm(folder, { recursive: true });
  await expectNothingHeld();
  useFakeDevices(null);
});
