import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { expectLoadedOrRefused } from './support/few-descriptors.js';

// From too few for Node.js itself on. test/long tries every limit.
describe.each(['3fs', 'nogds'])('%s', (copier) => {
  test.each([19, 21, 22, 23, 25, 27, 34])(
    'a hard limit of %d open files: loaded, or refused at once',
    async (limit) => {
      await expectLoadedOrRefused(copier, limit, 8);
    },
  );
});

// The C++ library within it is another one than that of the build for this machine.
const prebuilt = resolve(__dirname, `../prebuilds/linux-${process.arch}/fastsafetensors-node.glibc.node`);
if (!existsSync(prebuilt)) console.warn(`skipped: the prebuilt binary with few descriptors: ${prebuilt} is not built`);

(existsSync(prebuilt) ? test : test.skip).each([19, 21, 23])(
  'nogds by the prebuilt binary, a hard limit of %d open files: loaded, or refused at once',
  async (limit) => {
    for (let i = 0; i < 8; ++i) await expectLoadedOrRefused('nogds', limit, 8, { FASTSAFETENSORS_NATIVE: prebuilt });
  },
);
