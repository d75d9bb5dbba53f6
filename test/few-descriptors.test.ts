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
