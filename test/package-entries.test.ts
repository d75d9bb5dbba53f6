import { expectClean } from './support/child.js';

test('the ES module and CommonJS entries are one package: the same classes, the same registry', async () => {
  await expectClean('entries.mjs');
});
