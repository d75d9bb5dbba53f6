// The cross compiler of the prebuilt binaries: zig, which has clang, libc++ and the C libraries of every target in one
// package of 100 MB.
import { join } from 'node:path';
import { wheel } from './wheel.mjs';

/** The path of zig, installed on the first call. */
export const zig = () => join(wheel('zig'), 'ziglang', 'zig');

/** What it compiled for any target, its libc++ too. */
export const zigCache = () => join(wheel('zig'), 'cache');
