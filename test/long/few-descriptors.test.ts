import { expectLoadedOrRefused } from '../support/few-descriptors.js';

const LIMITS = Array.from({ length: 23 }, (_, i) => 18 + i);

describe.each(['3fs', 'nogds'])('%s', (copier) => {
  test.each(LIMITS)('a hard limit of %d open files: loaded, or refused at once', async (limit) => {
    for (const files of [1, 2, 8]) await expectLoadedOrRefused(copier, limit, files);
  });
});
