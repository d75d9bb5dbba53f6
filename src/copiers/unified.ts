import type { SpecFactory } from './engine-spec.js';
import { nogds } from './nogds.js';

/** Ordinary reads straight into memory that the host shares with the GPU. */
export const unified: SpecFactory = (device, options) => ({ ...nogds(device, options), unified: true });
